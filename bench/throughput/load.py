"""Many clients that only receive: each follows one generation after the other, up to the handoff, and has no model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession
from edge_client.patience import Patience
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
        finished: What each generation took, by the given clock, in the order in which they ended.
        encode_prompt_seconds: What the cloud's text encoder took, of each.
        extrapolated_seconds: What each extrapolated step took the cloud.
    """

    finished: list[float] = field(default_factory=list)
    encode_prompt_seconds: list[float] = field(default_factory=list)
    extrapolated_seconds: list[float] = field(default_factory=list)


async def offer(
    address: str, load: Load, *, mode: str, num_sessions: int, clock: Callable[[], float] = time.perf_counter
) -> NoReturn:
    """Keep `num_sessions` generations of a mode going until cancelled.

    Args:
        address: Of the service.
        load: Where what the clients see is noted.
        mode: Whose plan is asked for.
        num_sessions: At a time.
        clock: What a generation takes is measured by, seconds.
    """
    await asyncio.gather(*(_client(address, mode, client, load, clock) for client in range(num_sessions)))
    raise AssertionError("clients go on until they are cancelled")


async def _client(address: str, mode: str, client: int, load: Load, clock: Callable[[], float]) -> NoReturn:
    prompts = read_prompts("report")
    link = await CloudLink.connect((address,), Credentials(), wait_seconds=_CONNECT_SECONDS)
    try:
        picture = 0
        while True:
            started = clock()
            await _follow(link, load, mode, prompts[(client + picture) % len(prompts)], seed=1000 * client + picture)
            load.finished.append(clock() - started)
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
