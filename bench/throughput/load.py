"""Many clients that only receive: each follows one generation after the other, up to the handoff, and has no model."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession, Patience
from models import DEFAULT_GUIDANCE_SCALE, read_prompts
from orchestrator.link import LinkEstimate
from orchestrator.plan import PlanOptions, make_plan
from wire.credentials import Credentials
from wire.messages import Codec, Finished, HandedOff, Open, PromptText, Seed, Source, Step

_PATIENCE = Patience(silence_seconds=30.0, step_seconds=600.0)
_MAX_TENSOR_BYTES = 2**26
_CONNECT_SECONDS = 120.0


@dataclass(kw_only=True)
class Load:
    """What the clients saw.

    Attributes:
        finished: When each generation reached its end, `time.perf_counter()` seconds, and what it took.
        encode_prompt_seconds: What the cloud's text encoder took, of each.
        extrapolated_seconds: What each extrapolated step took the cloud.
    """

    finished: list[tuple[float, float]] = field(default_factory=list)
    encode_prompt_seconds: list[float] = field(default_factory=list)
    extrapolated_seconds: list[float] = field(default_factory=list)


async def offer(address: str, *, mode: str, num_sessions: int, seconds: float) -> Load:
    """Keep `num_sessions` generations of a mode going for so long; return when each was done.

    Args:
        address: Of the service.
        mode: Whose plan is asked for.
        num_sessions: At a time; they start at even distances over the length of one generation.
        seconds: New generations start for so long; those begun are finished.
    """
    load = Load()
    stop_at = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        for client in range(num_sessions):
            group.create_task(_client(address, mode, client, load, stop_at))
    return load


async def _client(address: str, mode: str, client: int, load: Load, stop_at: float) -> None:
    prompts = read_prompts("report")
    link = await CloudLink.connect((address,), Credentials(), wait_seconds=_CONNECT_SECONDS)
    try:
        picture = 0
        while time.perf_counter() < stop_at:
            started = time.perf_counter()
            await _follow(link, load, mode, prompts[(client + picture) % len(prompts)], seed=1000 * client + picture)
            load.finished.append((time.perf_counter(), time.perf_counter() - started))
            picture += 1
    finally:
        await link.close()


async def _follow(link: CloudLink, load: Load, mode: str, prompt: str, seed: int) -> None:
    """Open one session, take what comes up to the end of the cloud's part, and close."""
    session = CloudSession(
        link.stub,
        link.metadata,
        patience=_PATIENCE,
        max_tensor_bytes=_MAX_TENSOR_BYTES,
        observe=lambda event: None,
        stream_link=LinkEstimate(),
    )
    opening = Open(
        request_id=f"throughput-{seed}",
        conditioning=PromptText(prompt=prompt),
        start=Seed(seed=seed),
        plan=make_plan(mode, PlanOptions()),
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        codecs=(Codec.ZSTD,),
        credit=2,
    )
    try:
        load.encode_prompt_seconds.append((await session.open(opening)).encode_prompt_seconds)
        while not isinstance(message := await session.receive(), HandedOff | Finished):
            if isinstance(message, Step) and message.source is Source.EXTRAPOLATED:
                load.extrapolated_seconds.append(message.compute_seconds)
    finally:
        await session.close()
