"""Places for sessions, running and parked: how many there are, who gets one, and for how long."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from cloud_harness import Stream, always, no_session_left, open_channel, opening, running_cloud

from cloud_service.config import Timings
from cloud_service.registry import PARKED_PER_RUNNING
from protos import ecdiff_v1_pb2 as pb
from wire.convert import decode_description
from wire.errors import Busy, DeadlineExceeded, LimitExceeded
from wire.messages import Close, Correct, Credit, Finished, HandedOff, Heartbeat


async def test_beyond_max_sessions_a_client_is_told_to_come_back() -> None:
    async with running_cloud(max_sessions=1) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        first, second, third = Stream(stub), Stream(stub), Stream(stub)
        await first.send(opening(always(4, handoff_step=2)))
        await cloud.model.begun(1)
        await second.send(opening(always(2)))
        error = await second.error()
        assert isinstance(error, Busy)
        assert error.retry_after_seconds > 0
        assert cloud.sample("ecdiff_sessions_rejected_total", reason="busy") == 1
        cloud.model.run_freely()
        await first.receive_until(HandedOff)
        await third.send(opening(always(2)))  # a parked session holds no place
        await third.receive_steps()


async def test_too_many_parked_sessions_end_the_longest_silent_one() -> None:
    async with running_cloud(max_sessions=1) as cloud, open_channel(cloud.address) as stub:
        streams = [Stream(stub) for _ in range(PARKED_PER_RUNNING + 1)]
        for stream in streams:
            await stream.send(opening(always(4, handoff_step=0)))
            await stream.receive_until(HandedOff)
        assert isinstance(await streams[0].error(), Busy)
        await streams[1].send(Close())
        await streams[1].ends_ok()


async def test_a_parked_session_expires_in_silence_and_not_before() -> None:
    async with running_cloud(timings=Timings(parked_seconds=1.2)) as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(4, handoff_step=0)))
        await stream.receive_until(HandedOff)
        await asyncio.sleep(0.8)
        await stream.send(Credit(count=1))
        started = time.monotonic()
        assert isinstance(await stream.error(), DeadlineExceeded)
        assert time.monotonic() - started > 1.1
        await no_session_left(cloud)


async def test_the_deadline_ends_a_session_in_the_middle_of_a_step() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(50), deadline_seconds=0.3))
        assert isinstance(await stream.error(), DeadlineExceeded)
        assert cloud.sample("ecdiff_cloud_sessions") == 0
        cloud.model.run_freely()


async def test_the_deadline_is_over_with_the_handoff() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(5, handoff_step=0), deadline_seconds=0.2))
        await stream.receive_until(HandedOff)
        await stream.receive_until(Heartbeat)
        await stream.send(Close())
        await stream.ends_ok()


async def test_more_corrections_than_fit_end_the_session() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(4, handoff_step=0)))
        await stream.receive_until(HandedOff)
        cloud.model.pace()
        for _ in range(5):
            await stream.send(Correct(step_index=0, latents=np.zeros((1, 4, 16, 16), np.float32)))
        assert isinstance(await stream.error(), LimitExceeded)
        cloud.model.run_freely()


async def test_one_client_takes_no_more_than_its_share_of_the_places() -> None:
    async with running_cloud(max_sessions=4, max_sessions_per_client=2) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        streams = [Stream(stub) for _ in range(3)]
        for stream in streams[:2]:
            await stream.send(opening(always(3)))
        async with asyncio.timeout(10):
            while decode_description(await stub.Describe(pb.DescribeRequest())).load.sessions < 2:
                await asyncio.sleep(0.01)
        await streams[2].send(opening(always(3)))
        refused = await streams[2].error()
        assert isinstance(refused, Busy)
        assert "this client has 2 sessions here" in str(refused)
        assert refused.retry_after_seconds > 0
        cloud.model.run_freely()
        for stream in streams[:2]:
            await stream.receive_until(Finished)
            await stream.send(Close())
        # Its places are free again.
        another = Stream(stub)
        await another.send(opening(always(2)))
        await another.receive_until(Finished)
