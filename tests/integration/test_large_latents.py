"""Latents of a video's size are encoded and decoded beside the event loop: others do not wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future

import grpc.aio
import numpy as np
import pytest

from edge_client.cloud_session import CloudSession
from edge_client.patience import Patience
from harness.scripted_cloud import Receive, Send, conversing_cloud, honest_opened
from orchestrator.link import LinkEstimate
from orchestrator.plan import PlanOptions, make_plan
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.channel import CHANNEL_OPTIONS
from wire.codecs import CODECS
from wire.messages import Codec, Correct, Correction, Description, DType, Open, PromptText, Seed, Source, Step
from wire.tensors import numpy_dtype

pytestmark = pytest.mark.asyncio(loop_scope="session")

# CogVideoX-5B's: 49 frames of 480 x 720 in half precision, 2.2 MiB.
SHAPE = (1, 13, 16, 60, 90)
NUM_TENSORS = 12


def latents_of_a_video() -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    first, change = (chance.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
    return [(first + 0.05 * index * change).astype(np.float16) for index in range(NUM_TENSORS)]


LATENTS = latents_of_a_video()


@contextlib.contextmanager
def served_elsewhere(description: Description, script: Callable[..., object]) -> Iterator[str]:
    """Serve on the loop of another thread, so that only one end works on the test's loop."""
    started: Future[str] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with conversing_cloud(description, script) as address:
            started.set_result(address)
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield started.result(timeout=20)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def session_with(address: str, codec: Codec) -> AsyncIterator[CloudSession]:
    opening = Open(
        request_id="large",
        conditioning=PromptText(prompt="a cat"),
        start=Seed(seed=0),
        plan=make_plan("cloud", PlanOptions(num_inference_steps=NUM_TENSORS)),
        codecs=(codec,),
        credit=NUM_TENSORS,
    )
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        session = CloudSession(
            CloudDenoiserStub(channel),
            (),
            patience=Patience(silence_seconds=60),
            max_tensor_bytes=LATENTS[0].nbytes,
            observe=lambda event: None,
            stream_link=LinkEstimate(),
        )
        await session.open(opening)
        yield session
        await session.close()


class Ticker:
    """Looks at the clock as often as the loop lets it."""

    def __init__(self) -> None:
        self.looked_at: list[float] = []

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            self.looked_at.append(time.perf_counter())
            await asyncio.sleep(0.0005)

    def longest_wait(self, begin: float, end: float) -> float:
        """Return the longest time between two looks of which one lies in between."""
        pairs = itertools.pairwise(self.looked_at)
        return max((after - before for before, after in pairs if after > begin and before < end), default=end - begin)


def seconds_inline(codec: Codec) -> float:
    """Return what encoding and decoding one tensor takes, where nothing else runs; the quickest of several."""
    taken = []
    for latents in LATENTS[:5]:
        started = time.perf_counter()
        elements = latents.reshape(-1)
        encoded = CODECS[codec].encode(elements)
        CODECS[codec].decode(encoded.data, encoded.scales, numpy_dtype(DType.FLOAT16), elements.size)
        taken.append(time.perf_counter() - started)
    return min(taken)


@pytest.mark.parametrize("codec", [Codec.INT8_BLOCK, Codec.INT8_DELTA])
async def test_large_latents_hold_the_loop_for_less_than_their_codec_takes(
    description: Description, codec: Codec
) -> None:
    async def script(opening: Open, send: Send, receive: Receive) -> None:
        opened = honest_opened(videos, opening, latents_shape=SHAPE)
        await send(dataclasses.replace(opened, latents_dtype=DType.FLOAT16))
        for index, latents in enumerate(LATENTS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=latents))
            assert isinstance(await receive(), Correct)
            await send(Correction(step_index=index, prediction=latents))

    videos = dataclasses.replace(description, model=dataclasses.replace(description.model, layout="BFCHW"))
    came, waits = [], []
    with served_elsewhere(videos, script) as address:
        async with session_with(address, codec) as session, Ticker() as ticker:
            for index, latents in enumerate(LATENTS):
                began = time.perf_counter()
                step = await session.receive()
                assert isinstance(step, Step)
                came.append(step.latents)
                session.send(Correct(step_index=index, latents=latents))
                assert isinstance(await session.receive(), Correction)
                waits.append(ticker.longest_wait(began, time.perf_counter()))
    # Two tensors come and one is sent meanwhile: inline they would hold the loop for longer than this.
    assert statistics.median(waits) < 0.7 * seconds_inline(codec)
    assert all(np.allclose(mine, yours, atol=0.05) for mine, yours in zip(came, LATENTS, strict=True))
