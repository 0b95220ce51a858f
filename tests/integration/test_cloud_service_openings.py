"""Before a session is let in: what a service holds of an Open, and for how long."""

from __future__ import annotations

import asyncio
import gc
import time

import numpy as np
import pytest
from cloud_harness import Stream, always, open_channel, opening, running_cloud

from cloud_service.config import Timings
from cloud_service.conversation import Conversation
from cloud_service.opening import OpeningMemory
from cloud_service.registry import PARKED_PER_RUNNING
from cloud_service.server import CALLS_BESIDE_SESSIONS
from protos import ecdiff_v1_pb2 as pb
from wire.errors import Busy, LimitExceeded
from wire.messages import Finished, HandedOff, Limits, Noise


async def test_a_large_open_comes_in_however_slowly_the_service_reads_it() -> None:
    begin = opening(
        always(2, handoff_step=0),
        start=Noise(noise=np.zeros((2, 4, 256, 256), np.float32)),
        height=2048,
        width=2048,
        num_images=2,
    )
    # 2 MiB at 1 MB a second, of which the first second's is free.
    slowly = {"max_client_mbit_s": 8.0, "timings": Timings(open_seconds=0.5)}
    async with running_cloud(**slowly) as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        started = time.monotonic()
        await stream.send(begin)
        await stream.receive_until(HandedOff)
        assert time.monotonic() - started > 0.9


@pytest.mark.grpc_only("looks into the service's process")
async def test_unfinished_opens_hold_no_more_memory_than_one_client_may_have() -> None:
    piece = pb.ClientMessage(fragment=pb.Fragment(total_bytes=2**20, data=bytes(300_000)))
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.server.backend._service.opening_memory = OpeningMemory(Limits(max_tensor_bytes=2**18))
        streams = [Stream(stub) for _ in range(2)]
        for stream in streams:
            await stream.send_raw(piece)
        (refused,), (waits,) = await asyncio.wait(
            [asyncio.create_task(stream.error()) for stream in streams], return_when=asyncio.FIRST_COMPLETED
        )
        assert isinstance(await refused, Busy)
        assert "this client opens too many large sessions" in str(await refused)
        assert not waits.done()
        for stream in streams:
            stream.call.cancel()
        async with asyncio.timeout(10):
            while cloud.server.backend._service.opening_memory._held_bytes:
                await asyncio.sleep(0.01)
        another = Stream(stub)
        await another.send(opening(always(2)))
        await another.receive_until(Finished)
        assert not cloud.server.backend._service.opening_memory._held_bytes


@pytest.mark.grpc_only("looks into the service's process")
async def test_a_refused_open_is_gone_at_once_without_a_garbage_collection() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                stream = Stream(stub)
                await stream.send(opening(always(4), num_images=9))
                assert isinstance(await stream.error(), LimitExceeded)
            async with asyncio.timeout(10):
                while any(type(each) is Conversation for each in gc.get_objects()):
                    await asyncio.sleep(0.05)
        finally:
            gc.enable()


@pytest.mark.grpc_only("Ray's proxy does not count the calls of a connection")
async def test_a_connection_holds_no_more_calls_than_its_client_may_have_use_for() -> None:
    async with (
        running_cloud(max_sessions=4, max_sessions_per_client=1) as cloud,
        open_channel(cloud.address) as stub,
        open_channel(cloud.address) as other_stub,
    ):
        await stub.Describe(pb.DescribeRequest())
        streams = [Stream(stub) for _ in range(1 + PARKED_PER_RUNNING + CALLS_BESIDE_SESSIONS)]
        for stream in streams:
            await stream.call.wait_for_connection()
        one_more = stub.Describe(pb.DescribeRequest())
        await other_stub.Describe(pb.DescribeRequest())
        await asyncio.sleep(0.3)
        assert not one_more.done()
        streams[0].call.cancel()
        async with asyncio.timeout(10):
            await one_more
