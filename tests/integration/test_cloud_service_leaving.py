"""However a client leaves, its session is gone before the next step and leaves no trace."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest
from cloud_harness import Stream, always, ecdiff, no_session_left, open_channel, opening, running_cloud

from cloud_service.config import LOGGER_NAME, Timings
from wire.convert import encode_client
from wire.errors import DeadlineExceeded
from wire.framing import fragments
from wire.messages import Close, Codec, Finished, HandedOff, Noise


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
