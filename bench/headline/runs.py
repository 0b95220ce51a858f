"""Every mode on the same prompts, through real services: what is run, and what is kept of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cloud import cloud_service
from bench.network import network_process
from edge_client import EdgeClient
from edge_client.report import Report
from orchestrator.handoff import HandoffReason
from orchestrator.plan import MODES

LOOPBACK = "loopback"
"""The link with nothing in between: not even the emulation."""

# Pictures whose times do not matter are made on as many clouds at once, each with one session at a time, as when timed.
LANES = 2
# Longer than any stall of a busy machine: a cloud that is given up would make another picture.
SILENCE_SECONDS = 60.0
LOST = (HandoffReason.CLOUD_LOST, HandoffReason.CLOUD_FULL, HandoffReason.CLOUD_ERROR)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A mode with its options: one line of the tables.

    Attributes:
        name: No two share one.
        mode: Of `edge-client generate`.
        options: Of `PlanOptions`, beside the step count.
    """

    name: str
    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One picture that is asked for."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation.

    Attributes:
        variant: Name of the variant.
        ask: What was asked for.
        wall_seconds: From the call to the picture; models are loaded and the channel is open.
        report: docs/report.md.
        latents: Final latents `[1, C, H, W]`, float32, before the VAE's own scaling.
        picture: `[H, W, 3]`, uint8.
    """

    variant: str
    ask: Ask
    wall_seconds: float
    report: Report
    latents: NDArray[np.float32]
    picture: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The models, by folder or hub id; None: the bundled ones."""

    cloud: str | None = None
    edge: str | None = None


class CloudWasLost(Exception):
    """A generation fell back to the edge, so that its figures would be another mode's."""


def make_variants(tolerance: float) -> tuple[Variant, ...]:
    """Return every mode, and adaptive once more with a tolerance of its own."""
    exact = Variant(name=f"adaptive, tolerance {tolerance:g}", mode="adaptive", options={"tolerance": tolerance})
    return (*(Variant(name=mode, mode=mode) for mode in MODES), exact)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be run.

    Attributes:
        pair: The models.
        variants: Every line of the tables.
        asks: The pictures that quality rests on.
        repeats: Timed runs of each variant on each link, one an ask.
        links: Names of the links, in `bench.network.LINKS`.
        num_steps: Denoising steps.
    """

    pair: Pair
    variants: tuple[Variant, ...]
    asks: tuple[Ask, ...]
    repeats: int
    links: tuple[str, ...]
    num_steps: int


async def run_all(work: Work, keep_made: Callable[[Run], object], keep_timed: Callable[[str, Run], object]) -> None:
    """Make every picture in every mode on loopback, then time every mode on every link.

    Args:
        work: What is to be run.
        keep_made: Told of each picture.
        keep_timed: Told the link and the run.

    Raises:
        CloudWasLost: See there.
        EcdiffError: A service cannot be reached.
        RuntimeError: An emulated network ended.
    """
    async with cloud_service(work.pair.cloud) as address, _client(work, address) as client:
        async with contextlib.AsyncExitStack() as lanes:
            clients = [client]
            for _ in range(min(LANES, len(work.asks)) - 1):
                other = await lanes.enter_async_context(cloud_service(work.pair.cloud))
                clients.append(await lanes.enter_async_context(_client(work, other)))
            await _make_pictures(work, clients, keep_made)
        async with contextlib.AsyncExitStack() as stack:
            by_link = {}
            for name in work.links:
                if name == LOOPBACK:
                    by_link[name] = client
                else:
                    network = stack.enter_context(network_process(address, name))
                    by_link[name] = await stack.enter_async_context(_client(work, network.address))
            await _measure_times(work, by_link, keep_timed)


async def _make_pictures(work: Work, clients: Sequence[EdgeClient], keep: Callable[[Run], object]) -> None:
    todo = iter([(variant, ask) for ask in work.asks for variant in work.variants])

    async def lane(client: EdgeClient) -> None:
        for variant, ask in todo:  # the lanes share the iterator
            keep(await _generate(client, variant, ask, work.num_steps))

    try:
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(lane(client))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _measure_times(work: Work, clients: Mapping[str, EdgeClient], keep: Callable[[str, Run], object]) -> None:
    """Time one generation at a time.

    All modes and links take turns within each ask, the modes in another order each time, so that a drift of the machine
    hits all alike.
    """
    for turn, ask in enumerate(itertools.islice(itertools.cycle(work.asks), work.repeats)):
        for name, client in clients.items():
            start = turn % len(work.variants)
            for variant in (*work.variants[start:], *work.variants[:start]):
                keep(name, await _generate(client, variant, ask, work.num_steps))


async def _generate(client: EdgeClient, variant: Variant, ask: Ask, num_steps: int) -> Run:
    started = time.perf_counter()
    result = await client.generate(
        ask.prompt, mode=variant.mode, seed=ask.seed, num_inference_steps=num_steps, **variant.options
    )
    wall_seconds = time.perf_counter() - started
    handoff = result.report["handoff"]
    if handoff is not None and HandoffReason(handoff["reason"]) in LOST:
        raise CloudWasLost(f"{variant.name}, {ask.prompt!r}: {'; '.join(result.report['fallbacks'])}")
    return Run(
        variant=variant.name,
        ask=ask,
        wall_seconds=wall_seconds,
        report=result.report,
        latents=result.latents,
        picture=np.asarray(result.images[0]),
    )


@contextlib.asynccontextmanager
async def _client(work: Work, address: str) -> AsyncIterator[EdgeClient]:
    """Run a client with its models warm and its channel open; one after the other, as transformers wants to load."""
    async with EdgeClient(cloud=address, edge_model=work.pair.edge, silence_seconds=SILENCE_SECONDS) as client:
        await client.generate("warm-up", mode="ecdiff", num_inference_steps=work.num_steps)
        yield client
