"""Generations over every link, and sessions that take latents with credits and without."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from bench.cloud import LOAD_SECONDS, cloud_service
from bench.network import network_process
from edge_client import EdgeClient
from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession
from edge_client.opening import open_message
from edge_client.patience import Patience
from edge_client.report import Report
from edge_client.request import GenerationRequest
from models import DEFAULT_GUIDANCE_SCALE, read_prompts
from orchestrator.link import LinkEstimate
from orchestrator.plan import PlanOptions
from orchestrator.windows import CREDIT_WINDOW
from wire.clock import stamp_seconds
from wire.credentials import Credentials
from wire.messages import Credit, Finished, Ping, PromptText, Seed, Step

# Longer than any stall of a busy machine, and than the queue that latents without credits make.
SILENCE_SECONDS = 60.0
# Often enough to see a queue grow; the edge itself asks once a second.
PING_SECONDS = 0.2
# A tiny Stable Diffusion with random weights, and as many latent channels as the bundled pair: its step is quicker than
# most links carry its latents, as a large model's is on an accelerator.
TINY_MODEL = Path(__file__).resolve().parents[2] / "tests" / "data" / "sd-tiny" / "cloud"
TINY_CHANNELS = 32


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A mode with options of `PlanOptions`: one line of the tables."""

    name: str
    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)


# The last has it all: shadow, agreement and corrections.
VARIANTS = (
    Variant(name="cloud", mode="cloud"),
    Variant(name="ecdiff", mode="ecdiff"),
    Variant(name="adaptive", mode="adaptive"),
    Variant(name="adaptive, error 0.017", mode="adaptive", options={"tolerance": 0.017}),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation; its latents are 8 KiB a picture."""

    link: str
    variant: str
    num_images: int
    report: Report


@dataclass(frozen=True, kw_only=True)
class Size:
    """Latents of one size, in a session of every step on the large model.

    Attributes:
        name: In the tables.
        tiny: Whether the model is the tiny random one; else the bundled one.
        num_steps: Steps, one latents each.
        num_images: Pictures in a tensor.
        guidance_scale: Of the session.
    """

    name: str
    tiny: bool
    num_steps: int
    num_images: int = 1
    guidance_scale: float = 1.0


SIZES = (
    Size(name="8 KiB", tiny=False, num_steps=20, guidance_scale=DEFAULT_GUIDANCE_SCALE),
    Size(name="128 KiB", tiny=True, num_steps=100, num_images=4),
)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What arrived of one session.

    Attributes:
        link: Its name.
        size: Name of the latents' size.
        with_credits: A window of two; else as many latents as there are may be under way.
        ages_seconds: From the end of a step to its latents' arrival, of every latents that came.
        last_age_seconds: The same of the latents that the session ended with.
        ping_seconds: Round trips within the stream.
        rtt_seconds: On a connection of its own, before there was a stream; the least.
        step_seconds: A step of the cloud, waiting for the device included, mean.
    """

    link: str
    size: str
    with_credits: bool
    ages_seconds: tuple[float, ...]
    last_age_seconds: float
    ping_seconds: tuple[float, ...]
    rtt_seconds: float
    step_seconds: float


class CloudWasLost(Exception):
    """A generation fell back to the edge, so that its figures would be another mode's."""


async def run_generations(
    links: Sequence[str], repeats: int, sizes: Sequence[int], narrow: str, tell: Callable[[str], object]
) -> list[Run]:
    """Return a run of every variant on every link, each with a first contact of its own; variants take turns.

    Args:
        links: Names in `bench.network.LINKS`.
        repeats: Of each.
        sizes: Pictures in a tensor, for the runs of larger latents: the last variant on the link `narrow`.
        narrow: Name of that link.
        tell: Told what is run.

    Raises:
        CloudWasLost: See there.
    """
    prompts, runs = read_prompts("report"), []
    asks = [(link, variant, 1) for link in links for variant in VARIANTS]
    if narrow in links:
        asks += [(narrow, VARIANTS[-1], num_images) for num_images in sizes]
    async with cloud_service() as address:
        with contextlib.ExitStack() as stack:
            addresses = {link: stack.enter_context(network_process(address, link)).address for link in links}
            for repeat in range(-1, repeats):
                # The first one warms the cloud up.
                for link, variant, num_images in asks if repeat >= 0 else asks[:1]:
                    tell(f"run {repeat + 1} of {repeats}: {link}, {variant.name}, {num_images} a tensor")
                    report = await _generate(addresses[link], variant, num_images, prompts[repeat], seed=repeat + 1)
                    if repeat >= 0:
                        runs.append(Run(link=link, variant=variant.name, num_images=num_images, report=report))
    return runs


async def _generate(address: str, variant: Variant, num_images: int, prompt: str, *, seed: int) -> Report:
    async with EdgeClient(cloud=address, silence_seconds=SILENCE_SECONDS) as client:
        await client.load()
        result = await client.generate(prompt, mode=variant.mode, seed=seed, num_images=num_images, **variant.options)
    reason = (result.report["handoff"] or {}).get("reason", "")
    if reason.startswith("cloud_"):
        raise CloudWasLost(f"{variant.name}: {'; '.join(result.report['fallbacks'])}")
    return result.report


async def run_streams(links: Sequence[str], repeats: int, tell: Callable[[str], object]) -> list[Stream]:
    """Return sessions of every size, on every link, with credits and without."""
    streams = []
    for size in SIZES:
        with contextlib.ExitStack() as stack:
            model = str(_tiny_model(stack.enter_context(tempfile.TemporaryDirectory()))) if size.tiny else None
            async with cloud_service(model) as address:
                near = {link: stack.enter_context(network_process(address, link)).address for link in links}
                for repeat in range(repeats):
                    for link in links:
                        for with_credits in (True, False):
                            tell(f"session {repeat + 1} of {repeats}: {link}, {size.name}, credits {with_credits}")
                            streams.append(await _stream(near[link], link, size, with_credits=with_credits))
    return streams


def _tiny_model(folder: str) -> Path:
    """Make a tiny random model in a folder, with `TINY_CHANNELS`; return where it is."""
    target = Path(folder) / "tiny"
    shutil.copytree(TINY_MODEL, target)
    unet, vae = target / "unet", target / "vae"
    torch.manual_seed(0)
    channels = {"in_channels": TINY_CHANNELS, "out_channels": TINY_CHANNELS}
    UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(unet), **channels).save_pretrained(unet)
    AutoencoderKL.from_config(AutoencoderKL.load_config(vae), latent_channels=TINY_CHANNELS).save_pretrained(vae)
    return target


async def _stream(address: str, link_name: str, size: Size, *, with_credits: bool) -> Stream:
    """Follow one session that is sent the latents of every step."""
    request = GenerationRequest(
        prompt="red apple, fluent style",
        mode="cloud",
        plan_options=PlanOptions(num_inference_steps=size.num_steps),
        guidance_scale=size.guidance_scale,
        num_images=size.num_images,
    )
    link = await CloudLink.connect((address,), Credentials(), wait_seconds=LOAD_SECONDS)
    try:
        await link.measure(num_probes=4)
        description = link.description
        opening = open_message(
            request,
            request.plan,
            shadow=False,
            size=request.size(description.model),
            start=Seed(seed=0),
            deadline_seconds=0.0,
            prompt=PromptText(prompt=request.prompt),
        )
        opening = dataclasses.replace(opening, credit=CREDIT_WINDOW if with_credits else size.num_steps)
        stream_link = LinkEstimate()
        session = CloudSession(
            link.stub,
            link.metadata,
            patience=Patience(silence_seconds=SILENCE_SECONDS),
            max_tensor_bytes=description.limits.max_tensor_bytes,
            observe=lambda event: None,
            stream_link=stream_link,
        )
        try:
            steps, ages = await _follow(session, opening, link.estimate, with_credits=with_credits)
        finally:
            await session.close()
        return Stream(
            link=link_name,
            size=size.name,
            with_credits=with_credits,
            ages_seconds=tuple(ages[:-1]),
            last_age_seconds=ages[-1],
            ping_seconds=tuple(stream_link.take_new_rtts()),
            rtt_seconds=link.estimate.rtt_quantile_seconds(0.0),
            step_seconds=sum(step.compute_seconds + step.queue_seconds for step in steps) / len(steps),
        )
    finally:
        await link.close()


async def _follow(
    session: CloudSession, opening: Any, estimate: LinkEstimate, *, with_credits: bool
) -> tuple[list[Step], list[float]]:
    """Return the steps, and the age at arrival of each latents that came, the last ones' at the end."""
    steps: list[Step] = []
    ages: list[float] = []
    await session.open(opening)
    pinging = asyncio.create_task(_ping(session))
    try:
        while True:
            message = await session.receive()
            if isinstance(message, Step):
                steps.append(message)
            if isinstance(message, Finished) or (isinstance(message, Step) and message.latents is not None):
                made_at = message.sent_at - message.encode_seconds - message.wait_seconds
                ages.append(estimate.one_way_seconds(made_at, session.received_at))
            if isinstance(message, Finished):
                return steps, ages
            if isinstance(message, Step) and message.latents is not None and with_credits:
                session.send(Credit())
    finally:
        pinging.cancel()


async def _ping(session: CloudSession) -> None:
    while True:
        session.send(Ping(t0=stamp_seconds()))
        await asyncio.sleep(PING_SECONDS)
