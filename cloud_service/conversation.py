"""One `Denoise` stream from Open to its end: a reader that takes what the client says, a writer that answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol, TypeVar

from cloud_service.admission import check_header, check_open
from cloud_service.clients import Peer, client_of
from cloud_service.config import LOGGER_NAME
from cloud_service.opening import Opening
from cloud_service.outbox import Outbox, tensor_bytes
from cloud_service.request import Request
from cloud_service.service import Service
from cloud_service.session import Session
from protos import ecdiff_v1_pb2 as pb
from wire.chain import Chain
from wire.clock import stamp_seconds
from wire.convert import ClientSpecs, decode_client, decode_open_header, encode_server
from wire.errors import DeadlineExceeded, EcdiffError, LimitExceeded, ProtocolError
from wire.framing import Assembler, fragments
from wire.messages import (
    ClientMessage,
    Close,
    Correct,
    Credit,
    Decode,
    HandOff,
    Open,
    Ping,
    Pong,
    PromptText,
    ServerMessage,
)

_log = logging.getLogger(LOGGER_NAME)

_T = TypeVar("_T")

# Encoding this much takes long enough (about a millisecond) to be worth a hop to another thread.
_INLINE_BYTES = 64 * 1024
_MAX_PENDING_CORRECTIONS = 4
# Tensors that wait in one session's outbox, whatever credit the client grants.
_MAX_WAITING_BYTES = 64 * 2**20


class Answers(Peer, Protocol):
    """Where a conversation's answers go, whatever carries them; grpc.aio's context is one."""

    async def write(self, message: pb.ServerMessage, /) -> None:
        """Send one message; returns when there is room for the next."""


class Conversation:
    """One stream.

    Args:
        service: What is shared.
        requests: What the client sends.
        answers: Where the answers go; only `run` writes to it.
    """

    def __init__(self, service: Service, requests: AsyncIterator[pb.ClientMessage], answers: Answers) -> None:
        self._service = service
        self._answers = answers
        self._client = client_of(answers)
        self._opening: Opening | None = None
        self._incoming = self._whole_messages(requests)
        self._specs = ClientSpecs()
        self._chain = Chain()
        self._observe = service.metrics.codec_event
        self._started_at = time.monotonic()
        self._request_id = ""
        self._sent_bytes = 0
        self._received_bytes = 0

    async def run(self) -> None:
        """Hold the conversation.

        Raises:
            EcdiffError: What the client is to be told in the stream's status.
        """
        try:
            session, request = await self._admit()
        except BaseException:
            # It holds the Open and this object, which holds it: else the memory waits for the garbage collection.
            await self._incoming.aclose()
            raise
        reader = asyncio.create_task(self._read(session))
        deadline = self._start_deadline(session, request.open.deadline_seconds)
        outcome = "cancelled"
        try:
            async with contextlib.aclosing(session.messages()) as messages:
                async for message in messages:
                    await self._write(message, request)
            outcome = "closed" if session.ending is None else type(session.ending).__name__
        except EcdiffError as error:
            outcome = type(error).__name__
            raise
        finally:
            if deadline is not None:
                deadline.cancel()
            reader.cancel()
            self._free(session)
            self._log_closed(session, request, outcome)

    # ------------------------------------------------------------------------------ opening

    async def _admit(self) -> tuple[Session, Request]:
        try:
            request = await self._accept()
            session = Session(
                session_id=uuid.uuid4().hex,
                client=self._client,
                outbox=Outbox(credit=request.open.credit, max_waiting_bytes=_MAX_WAITING_BYTES),
                start_step=request.start_step,
                handoff_step=request.open.plan.handoff_step,
                queue_position=self._service.engine.queue_position,
                timings=self._service.timings,
            )
            self._service.registry.add(session, step_seconds=self._service.engine.step_seconds)
        except EcdiffError as error:
            self._service.metrics.rejected(error)
            _log.info(
                "session refused",
                extra={"request_id": self._request_id, "error": type(error).__name__, "reason": str(error)},
            )
            raise
        self._service.engine.open(session.session_id, request)
        return session, request

    async def _accept(self) -> Request:
        service = self._service
        served, limits = service.ready(), service.limits
        self._opening = opening = Opening(service.opening_memory, self._client, service.timings.open_seconds)
        try:
            message = await opening.first_of(self._incoming)
            header = decode_open_header(message)
            self._request_id = header.request_id
            check_header(header, served, limits)
            check = functools.partial(check_open, message, header, served, limits, self._observe)
            request, self._specs = await _off_loop(check, message.ByteSize())
        finally:
            opening.end()
            self._opening = None
        return request

    def _start_deadline(self, session: Session, deadline_seconds: float) -> asyncio.TimerHandle | None:
        if not deadline_seconds:
            return None
        error = DeadlineExceeded(f"the deadline of {deadline_seconds:g} s has passed")
        spent_seconds = time.monotonic() - self._started_at

        def enforce() -> None:
            # Past the handoff the time is the edge's to spend.
            if not session.parked:
                self._end(session, error)

        return asyncio.get_running_loop().call_later(deadline_seconds - spent_seconds, enforce)

    # ------------------------------------------------------------------------------ reading

    async def _whole_messages(
        self, requests: AsyncIterator[pb.ClientMessage]
    ) -> AsyncGenerator[pb.ClientMessage, None]:
        """Yield messages with their fragments put together; none of them above what `Limits` says."""
        assembler = Assembler(pb.ClientMessage, self._service.limits.max_tensor_bytes)
        async for piece in requests:
            num_bytes = piece.ByteSize()
            self._received_bytes += num_bytes
            pause_seconds = self._service.reading.take(self._client, num_bytes)
            if self._opening is not None:
                self._opening.take(num_bytes, pause_seconds)
            await asyncio.sleep(pause_seconds)
            message = assembler.push(piece)
            if message is not None:
                yield message

    async def _read(self, session: Session) -> None:
        try:
            async for encoded in self._incoming:
                received_at = stamp_seconds()
                session.last_heard = time.monotonic()
                decode = functools.partial(decode_client, encoded, specs=self._specs, observe=self._observe)
                self._take(await _off_loop(decode, encoded.ByteSize()), session, received_at)
        except EcdiffError as error:
            self._end(session, error)
        except Exception:
            _log.exception("reading a stream failed", extra={"session_id": session.session_id})
            self._end(session, EcdiffError("internal error of the cloud service"))
        else:
            session.half_close()

    def _take(self, message: ClientMessage, session: Session, received_at: float) -> None:
        engine = self._service.engine
        match message:
            case Credit():
                session.grant(message.count)
            case Ping():
                session.pong(Pong(t0=message.t0, t1=received_at, t2=received_at))
            case HandOff():
                session.asked_to_hand_off = True
                engine.hand_off(session.session_id, message.step_index)
            case Correct():
                self._correct(message, session)
            case Decode():
                self._decode(message, session)
            case Close():
                self._free(session)
                session.finish()
            case Open():
                raise ProtocolError("a second Open on one stream")

    def _correct(self, message: Correct, session: Session) -> None:
        if not session.may_correct:
            raise ProtocolError("Correct comes after HandOff, or once the plan's handoff step is reached")
        if session.num_pending_corrections >= _MAX_PENDING_CORRECTIONS:
            raise LimitExceeded(f"at most {_MAX_PENDING_CORRECTIONS} corrections may wait")
        session.num_pending_corrections += 1
        self._service.engine.correct(session.session_id, message)

    def _decode(self, message: Decode, session: Session) -> None:
        if not session.may_correct or session.asked_to_decode:
            raise ProtocolError("Decode comes once, after HandOff, or once the plan's handoff step is reached")
        session.begin_to_decode()
        self._service.engine.decode(session.session_id, message.latents)

    # ------------------------------------------------------------------------------ writing

    async def _write(self, message: ServerMessage, request: Request) -> None:
        encode = functools.partial(
            encode_server, message, codec=request.codec, chain=self._chain, observe=self._observe
        )
        write_seconds = self._service.timings.write_seconds
        for piece in fragments(await _off_loop(encode, tensor_bytes(message))):
            self._sent_bytes += piece.ByteSize()
            try:
                async with asyncio.timeout(write_seconds):
                    await self._answers.write(piece)
            except TimeoutError:
                raise DeadlineExceeded(f"the client took no message for {write_seconds:g} s") from None

    # ------------------------------------------------------------------------------ ending

    def _end(self, session: Session, error: EcdiffError) -> None:
        self._free(session)
        session.fail(error)

    def _free(self, session: Session) -> None:
        """Leave the device before the next step."""
        self._service.engine.close(session.session_id)
        self._service.registry.remove(session.session_id)

    def _log_closed(self, session: Session, request: Request, outcome: str) -> None:
        opening, record = request.open, session.record
        prompts = {}
        if self._service.log_prompts and isinstance(opening.conditioning, PromptText):
            prompts = vars(opening.conditioning)
        _log.info(
            "session closed",
            extra={
                "request_id": self._request_id,
                "session_id": session.session_id,
                "outcome": outcome,
                "model": self._service.ready().model.info.name,
                "num_inference_steps": opening.plan.num_inference_steps,
                "start_step": request.start_step,
                "next_step": session.next_step,
                "latents_shape": request.latents_shape,
                "codec": request.codec.label,
                "total_seconds": round(time.monotonic() - self._started_at, 6),
                "sent_bytes": self._sent_bytes,
                "received_bytes": self._received_bytes,
                **{key: round(value, 6) for key, value in vars(record).items()},
                **prompts,
            },
        )


async def _off_loop(work: Callable[[], _T], size_bytes: int) -> _T:
    """Do `work` on `size_bytes` of tensors; much of it on another thread, so that no other session waits."""
    return await asyncio.to_thread(work) if size_bytes > _INLINE_BYTES else work()
