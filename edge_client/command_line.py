"""What the words of a command line mean: a request, a client, credentials; checked before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from orchestrator.plan import CLOUD_MODES

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.request import GenerationRequest
    from wire.credentials import Credentials


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

    others = [options.get(name) for name in ("report_file", "save_latents", "metrics_file")]
    with bad_usage():
        check_outputs([*image_paths(options["output"], num_images), *filter(None, others)])


def make_client(options: dict[str, Any], mode: str) -> EdgeClient:
    """Make the client; torch is imported only when everything that can be checked without it is."""
    with bad_usage():
        if mode not in CLOUD_MODES and (options["cloud"] or options["cloud_model"]):
            raise ValueError(f"mode {mode} uses no cloud: leave --cloud and --cloud-model out")
        if options["cloud"] is not None:
            if options["cloud_model"] is not None:
                raise ValueError("--cloud uses the model that is served there; leave --cloud-model out")
            read_addresses(options)
        credentials = read_credentials(options)

    # Not in the running loop: there Ctrl-C would wait until torch is imported.
    from edge_client.client import EdgeClient

    return EdgeClient(
        cloud=options["cloud"],
        cloud_model=options["cloud_model"],
        edge_model=options["edge_model"],
        device=options["device"],
        dtype=options["dtype"],
        credentials=credentials,
        silence_seconds=options["cloud_timeout"],
        step_seconds=options["cloud_step_timeout"],
    )


def read_addresses(options: dict[str, Any]) -> tuple[str, ...]:
    """Return the addresses of `--cloud`."""
    from edge_client.request import parse_addresses

    return parse_addresses(options["cloud"])


def read_credentials(options: dict[str, Any]) -> Credentials:
    """Return the credentials, tried on every address."""
    from wire.credentials import Credentials

    credentials = Credentials(
        token_file=options["auth_token_file"],
        tls_ca=options["tls_ca"],
        tls_cert=options["tls_cert"],
        tls_key=options["tls_key"],
        allow_plaintext_token=options["allow_plaintext_token"],
    )
    for address in read_addresses(options) if options["cloud"] is not None else ():
        credentials.metadata(address)
    return credentials


def make_request(prompt: str, mode: str, options: dict[str, Any]) -> GenerationRequest:
    """Turn the command line's options into a request; what was not given keeps its default.

    Raises:
        ValueError: An option does not fit.
    """
    from edge_client.request import GenerationRequest
    from models import DEFAULT_GUIDANCE_SCALE
    from orchestrator.plan import PlanOptions, parse_split

    plan_fields, request_fields = PlanOptions.__dataclass_fields__, GenerationRequest.__dataclass_fields__
    plan = {name: value for name, value in options.items() if name in plan_fields and value is not None}
    if options.get("steps") is not None:
        if mode != "split" or "handoff_step" in plan or "num_inference_steps" in plan:
            raise ValueError("--steps is mode split's way to say both --num-inference-steps and --handoff-step")
        cloud_steps, edge_steps = parse_split(options["steps"])
        plan.update(num_inference_steps=cloud_steps + edge_steps, handoff_step=cloud_steps)
    fields = {name: value for name, value in options.items() if name in request_fields and value is not None}
    if options["edge_model"] is None:
        fields.setdefault("guidance_scale", DEFAULT_GUIDANCE_SCALE)
    return GenerationRequest(prompt=prompt, mode=mode, plan_options=PlanOptions(**plan), **fields)
