"""The event loop's half of a session: what waits to be sent, and when it may be.

The device's half is `generation.Generation`. Only plain messages pass between the two.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from wire.channel import HEARTBEAT_SECONDS, PARKED_SECONDS
from wire.errors import DeadlineExceeded, EcdiffError
from wire.messages import (
    Correction,
    Finished,
    HandedOff,
    Heartbeat,
    Opened,
    Pong,
    PromptEmbeds,
    ServerMessage,
    Source,
    Step,
)


@dataclass(frozen=True, kw_only=True)
class Parked:
    """The device is done with the trajectory.

    Attributes:
        message: What the client is told.
        decided_at: End of the last step, or arrival of HandOff if later; `time.monotonic()` seconds.
    """

    message: HandedOff | Finished
    decided_at: float


# A little under what was promised, so that the promise holds when a timer is late.
_SILENCE_SECONDS = 0.8 * HEARTBEAT_SECONDS

SessionEvent = Opened | Step | Parked | Correction | EcdiffError
"""What the engine has to say to a session; an error is its last word."""


class Outbox:
    """Messages in order, with tensors of steps under credits.

    A step's header is always sent. Its tensors cost one credit; while there is none the newest step waits with
    its tensors and the older ones go as headers. With fewer credits than waiting steps the newest get them, so that
    latents do not age in a queue. The end of the trajectory brings the newest latents itself: what still waits then
    goes as headers, save predictions under credit, so that no link carries stale latents before those of the handoff.

    Args:
        credit: What the client granted in Open.
        max_waiting_bytes: Cap on tensors that wait here, whatever the client grants.
    """

    def __init__(self, *, credit: int, max_waiting_bytes: int) -> None:
        self._credit = credit
        self._max_waiting_bytes = max_waiting_bytes
        self._messages: deque[ServerMessage] = deque()
        self._pong: Pong | None = None

    def grant(self, count: int) -> None:
        """The client is ready for `count` more latents."""
        self._credit += count

    def push(self, message: ServerMessage) -> None:
        """Queue `message`; a Pong replaces one that waits, since only the newest measures anything."""
        if isinstance(message, Pong):
            self._pong = message
            return
        if isinstance(message, HandedOff | Finished):
            self._allot(self._credit, lambda step: step.prediction is not None)
        self._messages.append(message)
        if isinstance(message, Step):
            self._allot(max(1, self._credit), lambda step: True)

    def pop(self) -> ServerMessage | None:
        """Return the next message that may be sent now, or None."""
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return dataclasses.replace(pong, t2=time.time())
        if not self._messages:
            return None
        head = self._messages[0]
        if isinstance(head, Step) and tensor_bytes(head):
            if not self._credit:
                return None
            self._credit -= 1
        return self._messages.popleft()

    def strip(self) -> None:
        """Turn every waiting step into its header."""
        self._allot(0, lambda step: False)

    def _allot(self, places: int, deserves: Callable[[Step], bool]) -> None:
        """Leave their tensors to at most `places` steps that deserve it, the newest first, within the cap on bytes."""
        kept_bytes = 0
        for index in reversed(range(len(self._messages))):
            step = self._messages[index]
            if not isinstance(step, Step) or not (size_bytes := tensor_bytes(step)):
                continue
            fits = not kept_bytes or kept_bytes + size_bytes <= self._max_waiting_bytes
            if places and fits and deserves(step):
                places, kept_bytes = places - 1, kept_bytes + size_bytes
            else:
                self._messages[index] = _header(step)


@dataclass(kw_only=True)
class Record:
    """What a session did so far, for its line in the log."""

    nfe_cloud: int = 0
    nfe_extrapolated: int = 0
    nfe_correction: int = 0
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    encode_prompt_seconds: float = 0.0

    def add(self, event: Opened | Step | Correction) -> None:
        """Count one event."""
        if isinstance(event, Opened):
            self.encode_prompt_seconds = event.encode_prompt_seconds
            return
        self.compute_seconds += event.compute_seconds
        self.queue_seconds += event.queue_seconds
        if isinstance(event, Correction):
            self.nfe_correction += 1
        elif event.source is Source.CLOUD:
            self.nfe_cloud += 1
        else:
            self.nfe_extrapolated += 1


class Session:
    """One stream as the event loop sees it.

    Args:
        session_id: Chosen by the service.
        outbox: Where its messages wait.
        start_step: First step that the cloud runs.
        handoff_step: Where the plan ends the cloud's part.
        queue_position: Tells how many sessions are ahead of this one on the device.
    """

    def __init__(
        self,
        *,
        session_id: str,
        outbox: Outbox,
        start_step: int,
        handoff_step: int,
        queue_position: Callable[[str], int],
    ) -> None:
        self.session_id = session_id
        self.next_step = start_step
        self.ending: HandedOff | Finished | None = None
        self.record = Record()
        self.may_correct = False
        self.num_pending_corrections = 0
        self.last_heard = time.monotonic()
        self._handoff_step = handoff_step
        self._queue_position = queue_position
        self._outbox = outbox
        self._decided_at = 0.0
        self._error: EcdiffError | None = None
        self._finished = False
        self._half_closed = False
        self._wake = asyncio.Event()

    @property
    def remaining_steps(self) -> int:
        """Steps before the plan's handoff."""
        return self._handoff_step - self.next_step

    def deliver(self, event: SessionEvent) -> None:
        """Take what the engine says."""
        if isinstance(event, EcdiffError):
            self.fail(event)
        elif isinstance(event, Parked):
            self._park(event)
        else:
            self.record.add(event)
            if isinstance(event, Step):
                self.next_step = event.step_index + 1
            elif isinstance(event, Correction):
                self.num_pending_corrections -= 1
            self._outbox.push(event)
            self._wake.set()

    def _park(self, event: Parked) -> None:
        self.ending = event.message
        self.may_correct = True
        self._decided_at = event.decided_at
        # Silence counts from here: before, the client may have had nothing to say for long.
        self.last_heard = time.monotonic()
        self._outbox.push(event.message)
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
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    self._check_expiry()
                    yield self._heartbeat()

    def _heartbeat(self) -> Heartbeat:
        position = 0 if self.parked else self._queue_position(self.session_id)
        return Heartbeat(queue_position=position, step_index=self.next_step)

    def _check_expiry(self) -> None:
        silence_seconds = time.monotonic() - self.last_heard
        if self.parked and not self.num_pending_corrections and silence_seconds > PARKED_SECONDS:
            raise DeadlineExceeded(f"the parked session expired after {PARKED_SECONDS:g} s without a word")

    def _stamped(self, message: ServerMessage) -> ServerMessage:
        if isinstance(message, HandedOff | Finished):
            return dataclasses.replace(message, wait_seconds=time.monotonic() - self._decided_at)
        return message


def _header(step: Step) -> Step:
    return dataclasses.replace(step, latents=None, latents_before=None, prediction=None)


def tensor_bytes(message: ServerMessage) -> int:
    """Return the size of the tensors that `message` carries."""
    match message:
        case Step():
            tensors = [message.latents, message.latents_before, message.prediction]
        case HandedOff() | Finished():
            tensors = [message.state.latents, *message.state.scheduler_state.values()]
        case Correction():
            tensors = [message.prediction]
        case Opened(prompt_embeds=PromptEmbeds() as embeds):
            tensors = [embeds.prompt_embeds, embeds.negative_prompt_embeds]
        case _:
            tensors = []
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
