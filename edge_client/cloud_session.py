"""One Denoise stream as the edge sees it: a writer, a reader, and a deadline on the next message."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc

from edge_client.patience import Patience, Progress
from edge_client.stream_end import StreamEnd
from orchestrator.link import LinkEstimate, ProbeSample
from protos import ecdiff_v1_pb2 as pb
from wire.chain import Chain
from wire.channel import FRAGMENT_BYTES, PING_SECONDS
from wire.clock import stamp_seconds
from wire.codecs import LOSSLESS_CODECS
from wire.convert import ServerSpecs, decode_server, encode_client
from wire.errors import InvalidRequest, LimitExceeded, NotServing, ProtocolError, VersionMismatch
from wire.framing import Assembler, fragments
from wire.messages import (
    ClientMessage,
    Close,
    Codec,
    Correct,
    Decode,
    DType,
    Heartbeat,
    Open,
    Opened,
    Ping,
    Pong,
    PromptEmbeds,
    Scaling,
    Seed,
    ServerMessage,
)
from wire.tensors import CodecEvent, TensorSpec

# Below this, decoding takes less time than a hop to another thread.
INLINE_BYTES = 64 * 1024
SILENCE_SLICES = 4
# What a message may weigh beside its tensors.
HEADER_BYTES = 256 * 1024

# All that Opened may carry: T5's 512 tokens, 4,096 wide, in float32, twice, are 16 MiB.
MAX_EMBEDS_BYTES = 32 * 2**20


class CloudSession:
    """One generation's stream.

    Args:
        stub: `CloudDenoiserStub` on the channel to use.
        metadata: Sent with the call (token).
        patience: How long the cloud may be silent, and how long a step may take.
        max_tensor_bytes: Cap on one tensor of this generation.
        observe: Told of every tensor encoded or decoded.
        stream_link: Takes the in-stream round trips.
    """

    def __init__(
        self,
        stub: Any,
        metadata: tuple[tuple[str, str], ...],
        *,
        patience: Patience,
        max_tensor_bytes: int,
        observe: Callable[[CodecEvent], None],
        stream_link: LinkEstimate,
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._patience = patience
        self._max_tensor_bytes = max_tensor_bytes
        self._observe = observe
        self._stream_link = stream_link
        self._codec = Codec.RAW
        self._chain = Chain()
        self._specs = ServerSpecs()
        self._outgoing: asyncio.Queue[ClientMessage | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        # A step may carry three tensors of one size, a handoff the latents and three of a solver's history.
        self._assembler = Assembler(pb.ServerMessage, 4 * max_tensor_bytes + HEADER_BYTES)
        self._call: Any = None
        self._responses: Any = None
        self._end: StreamEnd
        self._closing = False
        self._progress = Progress(patience.step_seconds)
        self._pinged_at: deque[float] = deque()
        self.bytes_sent = 0
        self.bytes_received = 0
        self.received_at = 0.0
        self.decode_seconds = 0.0

    async def open(self, message: Open) -> Opened:
        """Start the stream and return what the cloud agreed to.

        Raises:
            EcdiffError: What the cloud answered instead; NotServing if it answered nothing.
        """
        self._codec = message.codecs[0]
        if message.want_prompt_embeds:
            self._specs = ServerSpecs(embeds=_embeds_spec(rank=3), pooled_embeds=_embeds_spec(rank=2))
            self._assembler.max_bytes += MAX_EMBEDS_BYTES
        self._call = self._stub.Denoise(metadata=self._metadata)
        self._end = StreamEnd(self._call)
        self._responses = aiter(self._call)
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._ping())]
        self.expect_progress()
        self.send(message)
        while True:
            answer = await self.receive()
            if isinstance(answer, Opened):
                break
            if not isinstance(answer, Heartbeat):
                raise ProtocolError(f"the cloud sent {type(answer).__name__} before Opened")
        if answer.codec not in message.codecs:
            raise ProtocolError(f"the cloud chose codec {answer.codec.label}, which was not offered")
        self._codec = answer.codec

        def spec(scaling: Scaling) -> TensorSpec:
            return TensorSpec(
                shape=answer.latents_shape,
                rank=len(answer.latents_shape),
                dtypes=frozenset({answer.latents_dtype}),
                codecs=frozenset({answer.codec}),
                scaling=scaling,
                max_bytes=self._max_tensor_bytes,
            )

        self._specs = ServerSpecs(
            num_inference_steps=len(answer.timesteps),
            latents=spec(Scaling.SCHEDULER),
            prediction=spec(Scaling.PREDICTION),
        )
        return answer

    def expect_pixels(self, shape: tuple[int, ...]) -> None:
        """Welcome pixels of this shape from now on."""
        self._specs = replace(self._specs, pixels_shape=shape)
        self._assembler.max_bytes = max(self._assembler.max_bytes, math.prod(shape) + HEADER_BYTES)

    def send(self, message: ClientMessage) -> None:
        """Queue a message for the writer."""
        self._outgoing.put_nowait(message)

    async def receive(self) -> ServerMessage:
        """Return the next message that is not a Pong.

        `received_at` (wall clock) and `decode_seconds` then tell of this message.

        Raises:
            NotServing: The cloud is gone, silent for too long, or makes no step.
            EcdiffError: The status that ended the stream, or why a message cannot be used.
        """
        while True:
            message = await self._next_message()
            self._progress.watch(message)
            if not isinstance(message, Pong):
                return message
            self._take_pong(message)

    def _take_pong(self, pong: Pong) -> None:
        """Take in a round trip; one answer stands for all Pings up to its own."""
        while self._pinged_at:
            if self._pinged_at.popleft() == pong.t0:
                self._stream_link.add_probe(ProbeSample(t0=pong.t0, t1=pong.t1, t2=pong.t2, t3=self.received_at))
                return
        raise ProtocolError("the cloud answers a Ping that is not waiting for an answer")

    def expect_progress(self) -> None:
        """From now on the cloud owes a step or a correction; a handoff ends that, a parked session owes nothing."""
        self._progress.expect()

    async def _next_message(self) -> ServerMessage:
        while True:
            try:
                received = await self._read()
            except (grpc.aio.AioRpcError, StopAsyncIteration):
                raise await self._end.error() from None
            if received is None:  # grpc.aio's word for it
                raise ProtocolError("the cloud sent bytes that are no message of this schema")
            self.received_at = stamp_seconds()
            self.bytes_received += received.ByteSize()
            try:
                whole = self._assembler.push(received)
                if whole is not None:
                    return await self._decode(whole)
                self._progress.watch(None)
            except (InvalidRequest, LimitExceeded, VersionMismatch) as error:
                # As a status these words say that our request is wrong; here the cloud's message is.
                raise ProtocolError(f"the cloud sent what cannot be used: {error}") from error

    async def _read(self) -> Any:
        """Return what the call gives next.

        The wait is cut in slices, and each must pass without a message: a pause of this very process (a model being
        loaded, a laptop asleep) uses up one of them at most and is not taken for the cloud's silence.

        Raises:
            NotServing: Silence for too long.
            AioRpcError: The cloud ended the stream with an error.
            StopAsyncIteration: The cloud ended the stream.
        """
        # Unlike read(), the iterator gives what has arrived even after a write has failed.
        reading = asyncio.ensure_future(anext(self._responses))
        try:
            for _ in range(SILENCE_SLICES):
                await asyncio.wait({reading}, timeout=self._patience.silence_seconds / SILENCE_SLICES)
                if reading.done():
                    return reading.result()
                self._raise_what_stopped_the_writer()
        finally:
            reading.cancel()
        raise NotServing(f"nothing heard from the cloud for {self._patience.silence_seconds:g} s")

    def _raise_what_stopped_the_writer(self) -> None:
        writer = self._tasks[0]
        if writer.done() and not writer.cancelled() and (error := writer.exception()) is not None:
            raise error

    async def _decode(self, message: pb.ServerMessage) -> ServerMessage:
        started = time.perf_counter()
        decode = functools.partial(decode_server, message, specs=self._specs, chain=self._chain, observe=self._observe)
        decoded = decode() if message.ByteSize() <= INLINE_BYTES else await asyncio.to_thread(decode)
        self.decode_seconds = time.perf_counter() - started
        return decoded

    async def _write(self) -> None:
        """The only writer of this stream."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader reports the end
            while (message := await self._outgoing.get()) is not None:
                encode = functools.partial(encode_client, message, codec=self._codec, observe=self._observe)
                encoded = await asyncio.to_thread(encode) if _is_large(message) else encode()
                for piece in fragments(encoded, FRAGMENT_BYTES):
                    self.bytes_sent += piece.ByteSize()
                    await self._call.write(piece)
            await self._call.done_writing()

    async def _ping(self) -> None:
        while True:
            self._pinged_at.append(stamp_seconds())
            self.send(Ping(t0=self._pinged_at[-1]))
            await asyncio.sleep(PING_SECONDS)

    def say_close(self) -> None:
        """Say Close, and nothing after it; to read on until the cloud ends the call then cancels nothing."""
        if self._closing or self._call is None:
            return
        self._closing = True
        self._tasks[1].cancel()
        self.send(Close())
        self._outgoing.put_nowait(None)

    async def close(self, *, grace_seconds: float = 0.5) -> None:
        """Say Close, read on for a moment, and let the call go.

        grpc.aio keeps a call for ever that is cancelled with messages unread (grpc issue 43360).
        """
        if self._call is None:
            return
        self.say_close()
        writer, pinger = self._tasks
        drain = asyncio.create_task(self._drain())
        try:
            await asyncio.wait({writer, drain}, timeout=grace_seconds)
        finally:
            writer.cancel()
            drain.cancel()
            self._call.cancel()
        await asyncio.gather(writer, pinger, drain, return_exceptions=True)

    async def _drain(self) -> None:
        """Read what still comes, and what it says no more."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in self._responses:
                pass


def _is_large(message: ClientMessage) -> bool:
    """Whether encoding a message takes longer than a hop to another thread."""
    match message:
        case Correct() | Decode():
            return message.latents.nbytes > INLINE_BYTES
        case Open():
            return isinstance(message.conditioning, PromptEmbeds) or not isinstance(message.start, Seed)
        case _:
            return False


def _embeds_spec(*, rank: int) -> TensorSpec:
    return TensorSpec(
        shape=None,
        rank=rank,
        dtypes=frozenset(DType),
        codecs=LOSSLESS_CODECS,
        scaling=Scaling.EMBEDDING,
        max_bytes=MAX_EMBEDS_BYTES,
    )
