"""Clients that say anything in any order: each stream ends by the rules, nothing is left, nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import time
from collections import Counter
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest
from cloud_harness import Cloud, Stream, ecdiff, open_channel, opening, running_cloud

from edge_client.stream_end import StreamEnd
from harness.conversations import OK, Conversation, Leaving
from harness.hostile import damage_bytes
from harness.speaker import Speaker
from protos import ecdiff_v1_pb2 as pb
from wire.channel import CHANNEL_OPTIONS
from wire.errors import Cancelled, from_status
from wire.messages import Array, Close, Limits

HOSTILE_BESIDE = 12
HONEST_STEPS = 5
SECONDS_FOR_ONE = 60.0
MAX_GROWTH_BYTES = 40 * 2**20
# A stream that ends while its client writes has, for grpc.aio, sometimes no status but that the write failed.
UNSEEN = "the connection to the cloud broke"
DENOISE = "/ecdiff.v1.CloudDenoiser/Denoise"
# So that a flipped bit asks for no picture that takes a minute.
LIMITS = Limits(max_height=136, max_width=136, max_num_images=2)


class Fuzz:
    """Hostile clients of one service, and an honest one beside them."""

    def __init__(self, cloud: Cloud, channel: grpc.aio.Channel, honest: dict[int, Array]) -> None:
        self.cloud = cloud
        self.num_messages = 0
        self.endings: Counter[str] = Counter()
        self.slowest_seconds = 0.0
        self._channel = channel
        self._denoise = channel.stream_stream(DENOISE, response_deserializer=pb.ServerMessage.FromString)
        self._honest = honest

    async def round(self, seed: int, *, exact: bool) -> None:
        """Hold a few conversations at a time, and see what they leave behind."""
        streams = [self._stream(seed * HOSTILE_BESIDE + number) for number in range(HOSTILE_BESIDE)]
        *_, honest = await asyncio.gather(*streams, self._unary(seed), honest_latents(self.cloud))
        for step_index, latents in honest.items():
            if exact:
                np.testing.assert_array_equal(latents, self._honest[step_index])
            else:
                np.testing.assert_allclose(latents, self._honest[step_index], rtol=1e-4, atol=1e-4)
        memory = self.cloud.server.backend._service.opening_memory
        async with asyncio.timeout(SECONDS_FOR_ONE):
            while self.cloud.sample("ecdiff_cloud_sessions") or memory._held_bytes:
                await asyncio.sleep(0.005)

    async def _stream(self, seed: int) -> None:
        conversation = Speaker(random.Random(seed)).conversation()
        began = time.monotonic()
        async with asyncio.timeout(SECONDS_FOR_ONE):
            ending, words = await self._hold(conversation)
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        self.endings[ending] += 1
        kinds = [each.kind.name for each in conversation.said]
        assert ending in conversation.endings | {UNSEEN}, (
            f"seed {seed}: {kinds}, then {conversation.leaving.name}: {words}"
        )

    async def _hold(self, conversation: Conversation) -> tuple[str, str]:
        """Say everything, and return how the stream ended, and in which words."""
        call = self._denoise()
        end = StreamEnd(call)
        writing = asyncio.create_task(self._say(call, conversation))
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while await call.read() is not grpc.aio.EOF:
                pass
        await asyncio.gather(writing, return_exceptions=True)
        if call.cancelled():
            return "Cancelled", ""
        error = await end.error()
        assert not str(error).startswith("the stream broke"), f"not in the words of ours: {error}"
        if isinstance(error, Cancelled):
            return OK, ""
        return UNSEEN if str(error) == UNSEEN else type(error).__name__, str(error)

    async def _say(self, call: Any, conversation: Conversation) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for said in conversation.said:
                await asyncio.sleep(said.pause_seconds)
                for piece in said.pieces:
                    self.num_messages += 1
                    await call.write(piece)
            if conversation.leaving is Leaving.HALF_CLOSE:
                await call.done_writing()
        if conversation.leaving is Leaving.CANCEL:
            call.cancel()

    async def _unary(self, seed: int) -> None:
        """Ask what is no stream, in bytes that may be no question."""
        chance = random.Random(seed)
        probe = pb.ProbeRequest(t0=1.0, padding=bytes(8), response_padding=chance.choice((8, 2**20, 2**32 - 1)))
        for name, message in (("Describe", b""), ("Probe", probe.SerializeToString())):
            self.num_messages += 1
            try:
                await self._channel.unary_unary(f"/ecdiff.v1.CloudDenoiser/{name}")(damage_bytes(message, chance))
            except grpc.aio.AioRpcError as error:
                told = from_status(error.code(), error.details(), error.trailing_metadata())
                assert type(told).__name__ in ("ProtocolError", "LimitExceeded"), told


async def honest_latents(cloud: Cloud) -> dict[int, Array]:
    """Return the latents of a session that keeps to the rules, by the step that they are for; the handoff's always."""
    async with open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(ecdiff(HONEST_STEPS + 1, HONEST_STEPS)))
        _, steps, ending = await stream.receive_steps()
        await stream.send(Close())
        await stream.ends_ok()
    # Latents that still wait when the handoff's come are not sent.
    streamed = {step.step_index + 1: step.latents for step in steps if step.latents is not None}
    return streamed | {HONEST_STEPS: ending.state.latents}


async def fuzz(num_messages: int, *, max_batch: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    process = psutil.Process()
    async with running_cloud(max_sessions=64, max_batch=max_batch) as cloud:
        cloud.server.backend._service.limits = LIMITS
        honest = await honest_latents(cloud)
        while len(honest) < HONEST_STEPS:  # all of them, for what the sessions beside are compared with
            honest |= await honest_latents(cloud)
        async with grpc.aio.insecure_channel(str(cloud.address), options=CHANNEL_OPTIONS) as channel:
            fuzz, began, seed = Fuzz(cloud, channel, honest), time.monotonic(), 0
            resident_bytes = num_tasks = 0
            while fuzz.num_messages < num_messages:
                if not resident_bytes and fuzz.num_messages >= num_messages / 4:
                    gc.collect()
                    resident_bytes, num_tasks = process.memory_info().rss, len(asyncio.all_tasks())
                await fuzz.round(seed, exact=max_batch == 1)
                seed += 1
            gc.collect()
            grown_bytes = process.memory_info().rss - resident_bytes
            print(
                f"\n{fuzz.num_messages} messages in {sum(fuzz.endings.values())} streams, max_batch {max_batch}: "
                f"{time.monotonic() - began:.0f} s, the slowest stream {fuzz.slowest_seconds:.1f} s, "
                f"RSS {resident_bytes / 2**20:.0f} MiB at a quarter, {grown_bytes / 2**20:+.1f} MiB at the end; "
                f"{dict(fuzz.endings.most_common())}"
            )
            async with asyncio.timeout(SECONDS_FOR_ONE):  # gRPC's own tasks outlive the last streams a little
                while len(asyncio.all_tasks()) > num_tasks + 2:
                    await asyncio.sleep(0.01)
            assert grown_bytes < MAX_GROWTH_BYTES
            assert fuzz.endings[UNSEEN] < 0.05 * fuzz.endings.total()
            assert fuzz.endings[OK] > 0.1 * fuzz.endings.total()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.grpc_only("looks into the service's process")
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_conversations_out_of_order_harm_nobody(max_batch: int, caplog: pytest.LogCaptureFixture) -> None:
    await fuzz(2_000, max_batch=max_batch, caplog=caplog)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_fifty_thousand_messages_each_harm_nobody(max_batch: int, caplog: pytest.LogCaptureFixture) -> None:
    await fuzz(50_000, max_batch=max_batch, caplog=caplog)
