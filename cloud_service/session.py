"""The event loop's half of a session: what waits to be sent, and when it may be.

The device's half is `generation.Generation`. Only plain messages pass between the two.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from cloud_service.config import Timings
from cloud_service.outbox import Outbox
from wire.errors import DeadlineExceeded, EcdiffError
from wire.messages import (
    Correction,
    Decoded,
    Finished,
    HandedOff,
    Heartbeat,
    Opened,
    Pong,
    ServerMessage,
    Source,
    State,
    Step,
    Totals,
)


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """The device has made a step.

    Attributes:
        step: What the client is told of it.
        ended_at: When it was made, `time.monotonic()` seconds.
    """

    step: Step
    ended_at: float


@dataclass(frozen=True, kw_only=True)
class Parked:
    """The device is done with the trajectory.

    Attributes:
        state: Where the trajectory stands.
        done: Whether the cloud ran every step.
        decided_at: End of the last step, or arrival of HandOff if later; `time.monotonic()` seconds.
    """

    state: State
    done: bool
    decided_at: float


SessionEvent = Opened | Stepped | Parked | Correction | Decoded | EcdiffError
"""What the engine has to say to a session; an error is its last word."""


@dataclass(kw_only=True)
class Record:
    """What a session did so far: what the client is told at the end of the cloud's part, and the log at the end."""

    nfe_cloud: int = 0
    nfe_extrapolated: int = 0
    nfe_correction: int = 0
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    encode_prompt_seconds: float = 0.0

    def add(self, event: Opened | Step | Correction | Decoded) -> None:
        """Count one event."""
        if isinstance(event, Opened):
            self.encode_prompt_seconds = event.encode_prompt_seconds
            return
        self.compute_seconds += event.compute_seconds
        self.queue_seconds += event.queue_seconds
        if isinstance(event, Decoded):
            return
        if isinstance(event, Correction):
            self.nfe_correction += 1
        elif event.source is Source.CLOUD:
            self.nfe_cloud += 1
        else:
            self.nfe_extrapolated += 1

    @property
    def totals(self) -> Totals:
        """What the client is told of it."""
        return Totals(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Totals)})


class Session:
    """One stream as the event loop sees it.

    Args:
        session_id: Chosen by the service.
        client: Whose it is.
        outbox: Where its messages wait.
        start_step: First step that the cloud runs.
        handoff_step: Where the plan ends the cloud's part.
        queue_position: Tells how many sessions are ahead of this one on the device.
        timings: When to send a Heartbeat, and when to expire.
    """

    def __init__(
        self,
        *,
        session_id: str,
        client: str,
        outbox: Outbox,
        start_step: int,
        handoff_step: int,
        queue_position: Callable[[str], int],
        timings: Timings,
    ) -> None:
        self.session_id = session_id
        self.client = client
        self.next_step = start_step
        self.ending: HandedOff | Finished | None = None
        self.record = Record()
        self.asked_to_hand_off = False
        self.num_pending_corrections = 0
        self.asked_to_decode = False
        self._decodes = False
        self.last_heard = time.monotonic()
        self._handoff_step = handoff_step
        self._queue_position = queue_position
        self._timings = timings
        self._outbox = outbox
        self._decided_at = 0.0
        self._ended_at: dict[int, float] = {}
        self._error: EcdiffError | None = None
        self._finished = False
        self._half_closed = False
        self._wake = asyncio.Event()

    @property
    def remaining_steps(self) -> int:
        """Steps before the plan's handoff."""
        return self._handoff_step - self.next_step

    @property
    def may_correct(self) -> bool:
        """Whether no step of this session is wanted any more: the client said so, or the plan's handoff is reached."""
        return self.asked_to_hand_off or self.remaining_steps <= 0

    def deliver(self, event: SessionEvent) -> None:
        """Take what the engine says."""
        if isinstance(event, EcdiffError):
            self.fail(event)
        elif isinstance(event, Parked):
            self._park(event)
        elif isinstance(event, Stepped):
            self.next_step = event.step.step_index + 1
            self._ended_at[event.step.step_index] = event.ended_at
            self._push(event.step)
        else:
            if isinstance(event, Correction):
                self.num_pending_corrections -= 1
            if isinstance(event, Decoded):
                self._decodes = False
            self._push(event)

    def begin_to_decode(self) -> None:
        """The client asked for its pictures; a session decodes once."""
        self.asked_to_decode = self._decodes = True

    def _push(self, message: Opened | Step | Correction | Decoded) -> None:
        self.record.add(message)
        self._outbox.push(message)
        self._wake.set()

    def _park(self, event: Parked) -> None:
        ending = Finished if event.done else HandedOff
        self.ending = ending(state=event.state, totals=self.record.totals)
        self._decided_at = event.decided_at
        # Silence counts from here: before, the client may have had nothing to say for long.
        self.last_heard = time.monotonic()
        self._outbox.push(self.ending)
        self._wake.set()
        if self._half_closed:
            self.finish()

    def half_close(self) -> None:
        """The client will say no more: run on to the end of the cloud's part, but wait for nothing after it."""
        self._half_closed = True
        if self.parked:
            self.finish()

    def grant(self, count: int) -> None:
        """The client is ready for `count` more latents."""
        self._outbox.grant(count)
        self._wake.set()

    def pong(self, pong: Pong) -> None:
        """Answer a Ping as soon as the writer is free."""
        self._outbox.push(pong)
        self._wake.set()

    @property
    def parked(self) -> bool:
        """Whether the device is done with the trajectory."""
        return self.ending is not None

    @property
    def ended(self) -> bool:
        """Whether nothing but messages that wait is sent any more."""
        return self._finished

    def fail(self, error: EcdiffError) -> None:
        """End the stream with `error` after the headers that still wait; the first end counts."""
        if not self._finished:
            self._error = error
            self.finish()

    def finish(self) -> None:
        """End the stream, with status OK, after the messages that still wait."""
        self._finished = True
        self._outbox.strip()
        self._wake.set()

    async def messages(self) -> AsyncGenerator[ServerMessage, None]:
        """Yield what may be sent, and a Heartbeat whenever nothing else could be for half a second.

        Raises:
            EcdiffError: What ended the session, after the messages that waited.
        """
        while True:
            message = self._outbox.pop()
            if message is not None:
                yield self._stamped(message)
            elif self._error is not None:
                raise self._error
            elif self._finished:
                return
            else:
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._timings.heartbeat_seconds):
                        await self._wake.wait()
                except TimeoutError:
                    self._check_expiry()
                    yield self._heartbeat()

    def _heartbeat(self) -> Heartbeat:
        position = 0 if self.parked else self._queue_position(self.session_id)
        return Heartbeat(queue_position=position, step_index=self.next_step)

    def _check_expiry(self) -> None:
        parked_seconds = self._timings.parked_seconds
        expired = time.monotonic() - self.last_heard > parked_seconds
        if self.parked and not (self.num_pending_corrections or self._decodes) and expired:
            raise DeadlineExceeded(f"the parked session expired after {parked_seconds:g} s without a word")

    def _stamped(self, message: ServerMessage) -> ServerMessage:
        if isinstance(message, HandedOff | Finished):
            return dataclasses.replace(message, wait_seconds=time.monotonic() - self._decided_at)
        if isinstance(message, Step):
            ended_at = self._ended_at.pop(message.step_index)
            return dataclasses.replace(message, wait_seconds=time.monotonic() - ended_at)
        return message
