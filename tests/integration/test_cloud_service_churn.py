"""Hundreds of sessions that come and go in every way leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random

import grpc.aio
import psutil
import pytest
from cloud_harness import Cloud, Stream, always, ecdiff, open_channel, opening, running_cloud

from protos import ecdiff_v1_pb2_grpc
from wire.errors import EcdiffError
from wire.messages import Close, Finished, HandedOff, HandOff, Step

ROUNDS, SESSIONS_PER_ROUND = 12, 16
MAX_GROWTH_BYTES = 40 * 2**20


async def live_somehow(stub: ecdiff_v1_pb2_grpc.CloudDenoiserStub, way: str) -> None:
    stream = Stream(stub)
    await stream.send(opening(always(6) if way == "close" else ecdiff(8, 6)))
    if way == "finish":
        await stream.receive_until((HandedOff, Finished))
        await stream.send(Close())
        await stream.ends_ok()
    elif way == "half-close":
        await stream.call.done_writing()
        await stream.ends_ok()
    elif way == "vanish":
        stream.call.cancel()
    else:
        await stream.receive_until(Step)
        if way == "cancel":
            stream.call.cancel()
        else:
            await stream.send(HandOff() if way == "hand off" else Close())
            await stream.send(Close())
            await stream.ends_ok()


async def one_round(cloud: Cloud, chance: random.Random) -> None:
    ways = ("finish", "half-close", "vanish", "cancel", "hand off", "close")
    async with open_channel(cloud.address) as stub:
        results = await asyncio.gather(
            *(live_somehow(stub, chance.choice(ways)) for _ in range(SESSIONS_PER_ROUND)), return_exceptions=True
        )
    harmless = (asyncio.CancelledError, asyncio.InvalidStateError, grpc.aio.AioRpcError, EcdiffError)
    assert [each for each in results if each is not None and not isinstance(each, harmless)] == []
    async with asyncio.timeout(60):
        while cloud.sample("ecdiff_cloud_sessions"):
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_churn_leaves_no_session_no_task_and_no_memory_behind(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(0)
    process = psutil.Process()
    async with running_cloud(max_sessions=SESSIONS_PER_ROUND) as cloud:
        for _ in range(ROUNDS // 3):
            await one_round(cloud, chance)
        gc.collect()
        resident_bytes, num_tasks = process.memory_info().rss, len(asyncio.all_tasks())
        for _ in range(ROUNDS):
            await one_round(cloud, chance)
        gc.collect()
        assert len(asyncio.all_tasks()) <= num_tasks + 2
        assert process.memory_info().rss - resident_bytes < MAX_GROWTH_BYTES
        async with open_channel(cloud.address) as stub:
            stream = Stream(stub)
            await stream.send(opening(always(2)))
            await stream.receive_until(Finished)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
