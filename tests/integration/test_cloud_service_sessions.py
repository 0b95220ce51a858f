"""Many sessions on one device: what one of them does or suffers is nobody else's business."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import grpc
import numpy as np
import pytest
import torch
from cloud_harness import Cloud, Stream, always, ecdiff, letters, open_channel, opening, running_cloud

from cloud_service.config import LOGGER_NAME, Timings
from cloud_service.registry import PARKED_PER_RUNNING
from diffusion.model import Evaluation
from protos import ecdiff_v1_pb2 as pb
from wire.convert import decode_description, encode_client
from wire.errors import (
    Busy,
    DeadlineExceeded,
    LimitExceeded,
    ModelError,
    NotServing,
)
from wire.framing import fragments
from wire.messages import (
    Close,
    Codec,
    Correct,
    Credit,
    Finished,
    HandedOff,
    Heartbeat,
    Noise,
    Opened,
    Seed,
    Step,
)


async def no_session_left(cloud: Cloud) -> None:
    async with asyncio.timeout(30):
        while cloud.sample("ecdiff_cloud_sessions"):
            await asyncio.sleep(0.005)


# ------------------------------------------------------------------------------------ leaving


@pytest.mark.grpc_only("reads the log in the service's process")
async def test_the_log_counts_every_byte_that_the_client_sent_and_what_its_totals_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)
    begin = opening(ecdiff(6, 5), start=Noise(noise=np.zeros((1, 4, 16, 16), np.float32)))
    pieces = fragments(encode_client(begin, codec=Codec.RAW), limit_bytes=1000)
    end = encode_client(Close(), codec=Codec.RAW)
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        for piece in pieces:
            await stream.send_raw(piece)
        *_, ending = await stream.receive_until(HandedOff)
        await stream.send_raw(end)
        await stream.ends_ok()
        await no_session_left(cloud)
    (line,) = [record for record in caplog.records if record.getMessage() == "session closed"]
    assert line.received_bytes == sum(piece.ByteSize() for piece in (*pieces, end))
    assert (line.nfe_cloud, line.nfe_extrapolated) == (ending.totals.nfe_cloud, ending.totals.nfe_extrapolated)
    assert line.compute_seconds == pytest.approx(ending.totals.compute_seconds, abs=1e-5)


async def test_close_frees_the_session_before_its_next_step() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream, other = Stream(stub), Stream(stub)
        await stream.send(opening(always(50)))
        cloud.model.permit(3)
        await cloud.model.begun(4)
        await stream.send(Close())
        await stream.ends_ok()
        assert cloud.sample("ecdiff_cloud_sessions") == 0
        await other.send(opening(always(2)))
        cloud.model.run_freely()
        await other.receive_steps()
        assert cloud.model.num_begun == 4 + 2


async def test_a_cancelled_call_takes_no_further_step() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream, other = Stream(stub), Stream(stub)
        await stream.send(opening(always(50)))
        cloud.model.permit(3)
        await cloud.model.begun(4)
        stream.call.cancel()
        await no_session_left(cloud)
        await other.send(opening(always(2)))
        cloud.model.run_freely()
        await other.receive_steps()
        assert cloud.model.num_begun == 4 + 2


async def test_a_session_closed_while_it_waits_for_its_prompt_never_starts() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream, early = Stream(stub), Stream(stub)
        await stream.send(opening(always(3)))
        await cloud.model.begun(1)
        await early.send(opening(always(3)))
        await early.send(Close())
        await early.ends_ok()
        cloud.model.run_freely()
        await stream.receive_until(Finished)
        assert cloud.model.num_begun == 3


@pytest.mark.grpc_only("Ray's proxy takes messages on behalf of a client that reads none")
async def test_a_reader_that_reads_nothing_is_given_up_and_costs_the_others_nothing() -> None:
    timings = Timings(write_seconds=0.5)
    async with (
        running_cloud(timings=timings) as cloud,
        open_channel(cloud.address) as stub,
        open_channel(cloud.address) as other_stub,
    ):
        silent, other = Stream(stub), Stream(other_stub)
        # 8 MiB of latents without an evaluation: more than the buffers on the way take.
        await silent.send(opening(always(4, handoff_step=0), height=2048, width=2048, num_images=8))
        await other.send(opening(always(6)))
        _, steps, _ = await other.receive_steps()
        assert all(step.latents is not None for step in steps[:-1])
        await other.send(Close())
        await no_session_left(cloud)
        error = await silent.error()
        assert isinstance(error, DeadlineExceeded)
        assert "took no message" in str(error)


async def test_a_client_that_vanishes_in_the_middle_of_a_message_leaves_no_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_cloud() as cloud:
        async with open_channel(cloud.address) as stub:
            stream = Stream(stub)
            await stream.send(opening(always(4, handoff_step=0), height=2048, width=2048, num_images=8))
            async with asyncio.timeout(30):
                while not cloud.sample("ecdiff_cloud_sessions"):
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.2)  # by now the writer waits for the client to take something
        await no_session_left(cloud)
        async with open_channel(cloud.address) as stub:
            stream = Stream(stub)
            await stream.send(opening(always(2)))
            await stream.receive_until(Finished)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


# ------------------------------------------------------------------------------------ sharing


async def test_two_concurrent_sessions_equal_each_alone() -> None:
    plans = [ecdiff(8, 8), always(8, handoff_step=6)]
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        alone = []
        for seed, plan in enumerate(plans):
            stream = Stream(stub)
            await stream.send(opening(plan, start=Seed(seed=seed)))
            alone.append(await stream.receive_steps())
        cloud.model.forget()
        cloud.model.pace()
        streams = [Stream(stub) for _ in plans]
        for seed, (stream, plan) in enumerate(zip(streams, plans, strict=True)):
            await stream.send(opening(plan, start=Seed(seed=seed)))
            await stream.receive_until(Opened) if seed == 0 else None
        cloud.model.run_freely()
        together = [await stream.receive_until((HandedOff, Finished)) for stream in streams]
        assert 2 in cloud.model.batch_sizes
        for (_, steps, ending), received in zip(alone, together, strict=True):
            assert letters([step for step in received if isinstance(step, Step)]) == letters(steps)
            difference = received[-1].state.latents - ending.state.latents
            assert np.abs(difference).max() < 1e-5 * ending.state.latents.std()


async def test_sessions_of_different_shapes_take_turns() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        streams = [Stream(stub), Stream(stub)]
        await streams[0].send(opening(always(4)))
        await streams[1].send(opening(always(4), height=64, width=64))
        for stream in streams:
            await stream.receive_steps()
        assert set(cloud.model.batch_sizes) == {1}


async def test_heartbeats_tell_the_queue_position() -> None:
    async with running_cloud(max_batch=1) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        first, second = Stream(stub), Stream(stub)
        await first.send(opening(always(3)))
        await cloud.model.begun(1)
        await second.send(opening(always(3)))
        beats = [(await second.receive_until(Heartbeat))[-1] for _ in range(2)]
        assert beats[-1].queue_position == 1
        assert (await first.receive_until(Heartbeat))[-1].queue_position == 0


# ------------------------------------------------------------------------------------ places


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


# ------------------------------------------------------------------------------------ a failing model


async def test_a_model_that_fails_on_one_session_serves_the_others() -> None:
    def refuse_small(evaluations: Sequence[Evaluation]) -> None:
        if any(evaluation.guidance_scale == 2.0 for evaluation in evaluations):
            raise RuntimeError("this one never works")

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.before = refuse_small
        good, bad = Stream(stub), Stream(stub)
        await good.send(opening(always(6)))
        await bad.send(opening(always(6), guidance_scale=2.0))
        error = await bad.error()
        assert isinstance(error, ModelError)
        assert "this one never works" in str(error)
        _, steps, _ = await good.receive_steps()
        assert len(steps) == 6
        assert cloud.sample("ecdiff_nfe_total", source="cloud") == 6


async def test_an_answer_that_is_not_finite_ends_its_session_only() -> None:
    def spoil(predictions: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.full_like(each, torch.nan) if each.shape[0] == 2 else each for each in predictions]

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.after = spoil
        good, bad = Stream(stub), Stream(stub)
        await good.send(opening(always(4)))
        await bad.send(opening(always(4), num_images=2))
        error = await bad.error()
        assert isinstance(error, ModelError)
        assert "step 0 is not finite" in str(error)
        await good.receive_until(Finished)


async def test_running_out_of_memory_ends_the_session_and_not_the_service() -> None:
    def exhaust(evaluations: Sequence[Evaluation]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.before = exhaust
        stream = Stream(stub)
        await stream.send(opening(always(4)))
        error = await stream.error()
        assert isinstance(error, ModelError)
        assert str(error) == "the cloud model ran out of memory"
        cloud.model.before = lambda evaluations: None
        again = Stream(stub)
        await again.send(opening(always(2)))
        await again.receive_until(Finished)


async def test_a_late_result_for_a_closed_session_is_dropped() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream, other = Stream(stub), Stream(stub)
        await stream.send(opening(always(50)))
        await cloud.model.begun(1)
        await stream.send(Close())
        await stream.ends_ok()
        await other.send(opening(always(1)))
        cloud.model.run_freely()
        received = await other.receive_until(Finished)
        assert len(received) == 3  # Opened, one Step, Finished: nothing of the other session


# ------------------------------------------------------------------------------------ draining


async def test_draining_lets_running_sessions_finish_and_nobody_in() -> None:
    async with running_cloud(grace_seconds=60.0) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        running, parked, late = Stream(stub), Stream(stub), Stream(stub)
        await parked.send(opening(always(4, handoff_step=0)))
        await parked.receive_until(HandedOff)
        await running.send(opening(always(3)))
        await cloud.model.begun(1)
        draining = asyncio.create_task(cloud.drain())
        await parked.ends_ok()
        await late.send(opening(always(3)))
        assert isinstance(await late.error(), NotServing)
        cloud.model.run_freely()
        await running.receive_until(Finished)
        await running.ends_ok()
        await draining


async def test_the_grace_period_ends_what_is_still_running() -> None:
    async with running_cloud(grace_seconds=0.2) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(50)))
        await cloud.model.begun(1)
        draining = asyncio.create_task(cloud.drain())
        assert isinstance(await stream.error(), NotServing)
        cloud.model.run_freely()
        await draining
        assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE


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
