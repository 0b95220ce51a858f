"""What the words of a command line mean: a request, a client, an agent; checked before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edge_client.options import TERMINAL
from orchestrator.plan import CLOUD_MODES
from wire.serving.address import Address

if TYPE_CHECKING:
    from diffusion.vae_choice import VaeChoice
    from edge_client.client import EdgeClient
    from edge_client.preview_output import PreviewFile
    from edge_client.request import GenerationRequest
    from edge_client.runs import Runs
    from wire.credentials import Credentials

# An agent is on this machine: it is there at once, or not at all.
KNOCK_SECONDS = 0.25


@contextmanager
def bad_usage() -> Iterator[None]:
    """In this block a value that does not fit is the command line's; later it is a failure."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def check_outputs(options: dict[str, Any], num_images: int = 1) -> None:
    """Refuse what could not be written in the end."""
    from edge_client.pictures import check_outputs, image_paths
    from edge_client.videos import check_writer

    others = [options.get(name) for name in ("report_file", "save_latents", "metrics_file", "preview_to")]
    others = [each for each in others if each != TERMINAL]
    with bad_usage():
        check_writer(options["output"])
        check_outputs([*image_paths(options["output"], num_images), *filter(None, others)])


def preview_file(options: dict[str, Any]) -> PreviewFile | None:
    """Return what writes previews; None where they are not wanted, or on the terminal."""
    from edge_client.preview_output import PreviewFile

    wanted = options["preview_to"]
    return None if wanted in (None, TERMINAL) else PreviewFile(wanted)


def run(runs: Runs, options: dict[str, Any]) -> None:
    """Make the pictures: with the agent, where one is and fits, else here."""
    address = None if options["no_agent"] else find_agent(runs)
    if address is not None:
        runs.with_agent(address, named_options(), options)
    if not runs.are_done:
        runs.here(make_client(options))


def find_agent(runs: Runs) -> str | None:
    """Return where something listens that should be an agent; None where nothing does."""
    from edge_client.agent.address import VARIABLE, agent_address

    address, is_named = agent_address()
    if address is None:
        return None
    try:
        socket.create_connection((address.host, address.port), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        if is_named:
            runs.run_by_itself(f"no agent listens at {VARIABLE} {address} ({error.strerror or error})")
        return None
    return str(address)


def named_options() -> frozenset[str]:
    """Return the names of the options that the user gave."""
    context = click.get_current_context()
    given = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return frozenset(name for name in context.params if context.get_parameter_source(name) in given)


def check_cloud(options: dict[str, Any], mode: str) -> None:
    """Refuse options of the cloud that do not go together, or that this mode has no use for."""
    with bad_usage():
        if mode not in CLOUD_MODES and (options["cloud"] or options["cloud_model"] or options["cloud_lora"]):
            raise ValueError(f"mode {mode} uses no cloud: leave --cloud, --cloud-model and --cloud-lora out")
        if options["cloud"] is not None:
            if options["cloud_model"] is not None or options["cloud_lora"]:
                raise ValueError(
                    "--cloud uses the model that is served there; leave --cloud-model out, and --cloud-lora"
                )
            read_targets(options)
        read_credentials(options)
        read_vae(options)


def make_client(options: dict[str, Any]) -> EdgeClient:
    """Make the client of options that `check_cloud` has seen; this imports torch."""
    # Not in the running loop: there Ctrl-C would wait until torch is imported.
    from edge_client.client import EdgeClient

    return EdgeClient(
        cloud=options["cloud"],
        cloud_model=options["cloud_model"],
        edge_model=options["edge_model"],
        loras=options["lora"],
        vae=read_vae(options),
        cloud_loras=options["cloud_lora"],
        offload=options["offload"],
        device=options["device"],
        dtype=options["dtype"],
        orchestrator=options["orchestrator"],
        credentials=read_credentials(options),
        silence_seconds=options["cloud_timeout"],
        step_seconds=options["cloud_step_timeout"],
    )


def read_vae(options: dict[str, Any]) -> VaeChoice:
    """Return which VAE decodes, and how."""
    from diffusion.vae_choice import VaeChoice

    return VaeChoice(path_or_id=options["vae"], tiling=options["vae_tiling"], slicing=options["vae_slicing"])


def read_targets(options: dict[str, Any]) -> tuple[str, ...]:
    """Return what `--cloud` names."""
    from wire.targets import parse_targets

    return parse_targets(options["cloud"])


def read_credentials(options: dict[str, Any]) -> Credentials:
    """Return the credentials, tried on every address."""
    from wire.credentials import Credentials
    from wire.targets import address_of

    credentials = Credentials(
        token_file=options["auth_token_file"],
        tls_ca=options["tls_ca"],
        tls_cert=options["tls_cert"],
        tls_key=options["tls_key"],
        allow_plaintext_token=options["allow_plaintext_token"],
    )
    addresses = [address_of(target) for target in read_targets(options)] if options["cloud"] is not None else []
    if options.get("orchestrator") is not None:
        addresses.append(str(Address.parse(options["orchestrator"])))
    for address in addresses:
        credentials.metadata(address)
    return credentials


def options_for(mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison's options as this mode takes them: without a cloud, the edge encodes and decodes itself."""
    return options if mode in CLOUD_MODES else options | {"text_encoder": "own", "decode": "edge"}


def make_request(prompt: str, mode: str, options: dict[str, Any]) -> GenerationRequest:
    """Turn the command line's options into a request; what was not given keeps its default.

    Raises:
        ValueError: An option does not fit.
    """
    from edge_client.request import GenerationRequest
    from orchestrator.plan import PlanOptions, parse_split

    plan_fields, request_fields = PlanOptions.__dataclass_fields__, GenerationRequest.__dataclass_fields__
    plan = {name: value for name, value in options.items() if name in plan_fields and value is not None}
    if options.get("steps") is not None:
        if mode != "split" or "handoff_step" in plan or "num_inference_steps" in plan:
            raise ValueError("--steps is mode split's way to say both --num-inference-steps and --handoff-step")
        cloud_steps, edge_steps = parse_split(options["steps"])
        plan.update(num_inference_steps=cloud_steps + edge_steps, handoff_step=cloud_steps)
    fields = {name: value for name, value in options.items() if name in request_fields and value is not None}
    return GenerationRequest(prompt=prompt, mode=mode, plan_options=PlanOptions(**plan), **fields)
