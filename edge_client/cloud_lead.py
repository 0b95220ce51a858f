"""One session from Open to Close: the cloud leads, the edge takes over, the cloud answers corrections."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import cast

from edge_client.answers import DECODED, Answers
from edge_client.cloud_session import CloudSession
from edge_client.credit_window import CreditWindow
from edge_client.lead import WRONG_REQUEST, Lead, lost_reason
from edge_client.recorder import Recorder
from edge_client.shadow import Shadow
from orchestrator.handoff import HandoffReason
from wire.errors import EcdiffError, ProtocolError
from wire.messages import (
    Array,
    Correct,
    Correction,
    Credit,
    Decode,
    Decoded,
    Finished,
    HandedOff,
    HandOff,
    Heartbeat,
    Open,
    Opened,
    Source,
    State,
    Step,
)

_log = logging.getLogger("edge_client")
# What the edge needs for its part changes with every step that is made, here and there.
DEADLINE_CHECK_SECONDS = 0.05


class CloudLead:
    """Follows one session and holds the cloud to the plan.

    Args:
        session: Not opened yet.
        message: The Open.
        recorder: Told of everything.
        check_opened: Raises if what was agreed cannot be used here.
        check_state: Raises if the state that the edge is to take over cannot be used here.
        shadow: Told of real steps with their predictions; may end the cloud's lead. None: the plan ends it.
        is_late: Whether a step's latents came too late to be of use: fewer are wanted at a time then.
        deadline_in: Seconds until the edge must take over before a step (`Clock`); infinite without a deadline.
    """

    def __init__(
        self,
        session: CloudSession,
        message: Open,
        recorder: Recorder,
        *,
        check_opened: Callable[[Opened], None],
        check_state: Callable[[Opened, State], None],
        is_late: Callable[[Step], bool],
        shadow: Shadow | None = None,
        deadline_in: Callable[[int], float] = lambda next_step: math.inf,
    ) -> None:
        self._session = session
        self._message = message
        self._recorder = recorder
        self._check_opened = check_opened
        self._check_state = check_state
        self._is_late = is_late
        self._window = CreditWindow(message.credit)
        self._shadow = shadow
        self._deadline_in = deadline_in
        self._plan = message.plan
        self._newest = message.start if isinstance(message.start, State) else None
        self._next_step = 0 if self._newest is None else self._newest.step_index
        self._opened: Opened | None = None
        self._reason: HandoffReason | None = None
        self._announced: int | None = None
        self._over = False
        self._parked = asyncio.Event()
        self._answers = Answers()
        self._reading: asyncio.Task[None]
        self._answered = False
        self._gone: EcdiffError | None = None

    # ------------------------------------------------------------------------------ the cloud leads

    async def follow(self) -> Lead:
        """Run the session until the cloud hands off, finishes or is lost, or the edge decides to take over.

        Raises:
            EcdiffError: Only one of `WRONG_REQUEST`, before the session exists.
        """
        started = time.perf_counter()
        self._reading = asyncio.create_task(self._read())
        shadowing = None if self._shadow is None else asyncio.create_task(self._shadow.run(self._announce))
        try:
            await self._until_over(shadowing)
        finally:
            if shadowing is not None:
                shadowing.cancel()
                await asyncio.gather(shadowing, return_exceptions=True)
        self._over = True
        if not self._answered and isinstance(self._gone, WRONG_REQUEST):
            raise self._gone
        return self._lead(started)

    async def _until_over(self, shadowing: asyncio.Task[State] | None) -> None:
        """Wait for the first of: the cloud's end, agreement, the deadline."""
        ending = asyncio.create_task(self._cloud_ends())
        waiting: set[asyncio.Task[object]] = {ending} if shadowing is None else {ending, shadowing}
        try:
            while True:
                # Waits at least until Open is sent: nothing may be said before it.
                done, _ = await asyncio.wait(
                    waiting, timeout=self._check_deadline_in(), return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
                if self._seconds_left() <= 0.0:
                    if not (self._parked.is_set() or self._reading.done()):  # else only the shadow is waited for
                        self._take_over(self._newest, HandoffReason.DEADLINE)
                    return
        finally:
            ending.cancel()
        if shadowing is not None and shadowing.done():
            # Also when the cloud was quicker: the decision is about steps, not about when they came.
            self._take_over(shadowing.result(), HandoffReason.AGREEMENT)

    def _seconds_left(self) -> float:
        return self._deadline_in(0 if self._newest is None else self._newest.step_index)

    def _check_deadline_in(self) -> float | None:
        seconds = self._seconds_left()
        return None if math.isinf(seconds) else min(max(0.0, seconds), DEADLINE_CHECK_SECONDS)

    async def _cloud_ends(self) -> None:
        """Return when the cloud's part is over and the shadow has seen all of it."""
        await self.stopped()
        if self._shadow is not None and self._opened is not None:
            await self._shadow.settle()

    def _announce(self, handoff_step: int) -> None:
        """Tell the cloud where the edge will take over; it may be past that already."""
        self._announced = handoff_step
        if not self._parked.is_set():
            self._session.send(HandOff(step_index=handoff_step))

    def _take_over(self, state: State | None, reason: HandoffReason) -> None:
        self._over = True  # from here on no message changes what the edge goes on from
        if self._opened is not None and state is not None:
            self._check_state(self._opened, state)
        if not self._parked.is_set():
            self._session.send(HandOff())
        self._newest, self._reason = state, reason

    def _lead(self, started: float) -> Lead:
        recorder = self._recorder
        decided_at = time.perf_counter()
        if not self._parked.is_set():
            recorder.cloud_totals_from_steps()
            self._add_prompt_encoding()
        handoff_seconds = sum(recorder.handoff_stages.values())
        recorder.seconds["network"] += max(0.0, decided_at - started - recorder.cloud_seconds - handoff_seconds)
        lost = None if self._parked.is_set() or self._reason is not None else self._gone
        reason = self._reason if lost is None else lost_reason(lost)
        return Lead(opened=self._opened, state=self._newest, reason=reason, lost=lost, decided_at=decided_at)

    def _add_prompt_encoding(self) -> None:
        """The cloud's own account leaves it out."""
        if self._opened is not None:
            self._recorder.seconds["cloud_compute"] += self._opened.encode_prompt_seconds

    @property
    def answered(self) -> bool:
        """Whether the cloud took the session in."""
        return self._answered

    @property
    def gone(self) -> EcdiffError | None:
        """Why the cloud cannot be asked any more; None while it can."""
        return self._gone

    # ------------------------------------------------------------------------------ the stream

    async def _read(self) -> None:
        """Take in the session's messages until it ends."""
        try:
            opened = await self._session.open(self._message)
            self._answered = True
            self._check_opened(opened)
            self._opened = opened
            if not self._over:
                self._recorder.enter("cloud")
            while True:
                self._take(await self._session.receive())
        except EcdiffError as error:
            self._gone = error
        except Exception as error:  # whatever it is: else the session would end with no reason, and answers never come
            _log.exception("taking in what the cloud sends failed")
            self._gone = ProtocolError(f"what it sent could not be taken in: {type(error).__name__}: {error}")
        self._answers.give_up()

    def _take(self, message: object) -> None:
        self.record_traffic()
        match message:
            case Step():
                self._take_step(message)
            case HandedOff() | Finished():
                self._take_ending(message)
            case Correction():
                self._answers.take(message)
                self._recorder.correction(message)
            case Decoded():
                self._answers.take(message)
                self._recorder.seconds["cloud_compute"] += message.compute_seconds
            case Opened():
                raise ProtocolError("the cloud opens the session a second time")
            case Heartbeat() if not self._over:
                self._recorder.queue_position = message.queue_position
                self._recorder.notify()

    def _take_step(self, step: Step) -> None:
        if self._parked.is_set():
            raise ProtocolError(f"the cloud sent step {step.step_index} after its handoff")
        if step.step_index != self._next_step:
            raise ProtocolError(f"the cloud sent step {step.step_index} where step {self._next_step} was due")
        self._next_step += 1
        self._recorder.queue_position = 0
        if step.latents is not None and not self._over:
            self._newest = State(step_index=step.step_index + 1, latents=step.latents)
            self._recorder.saw_latents(step.step_index + 1, step.latents)
            if credits := self._window.came(late=self._is_late(step)):
                self._session.send(Credit(count=credits))
        if self._shadow is not None and not self._over and step.source is Source.CLOUD:
            self._shadow.offer(step)
        self._recorder.cloud_step(step, self._session.received_at)

    def _take_ending(self, message: HandedOff | Finished) -> None:
        step_index = message.state.step_index
        if self._parked.is_set():
            raise ProtocolError(f"the cloud hands off a second time, at step {step_index}")
        if step_index != self._next_step:
            raise ProtocolError(f"the cloud ends at step {step_index}, but the next step is {self._next_step}")
        # A cloud that hears of the handoff too late stops where it is by then.
        announced = self._announced is not None and step_index >= self._announced
        if not (announced or self._over or step_index == self._plan.handoff_step):
            raise ProtocolError(f"the cloud ends at step {step_index}, the plan at {self._plan.handoff_step}")
        self._recorder.cloud_totals(message.totals)
        self._add_prompt_encoding()
        if not self._over:
            assert self._opened is not None
            self._check_state(self._opened, message.state)
            self._newest = message.state
            self._reason = self._planned_reason(message)
            if isinstance(message, HandedOff):
                self._recorder.handoff_latency(message, self._session.received_at, self._session.decode_seconds)
        self._parked.set()

    def _planned_reason(self, message: HandedOff | Finished) -> HandoffReason | None:
        if isinstance(message, Finished):
            return None
        at_plan = message.state.step_index == self._plan.handoff_step
        return HandoffReason.PLAN if at_plan else HandoffReason.AGREEMENT

    # ------------------------------------------------------------------------------ the edge leads

    async def stopped(self) -> None:
        """Return when every step that the cloud made is known: it has handed off, or is gone."""
        parked = asyncio.create_task(self._parked.wait())
        try:
            await asyncio.wait({self._reading, parked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            parked.cancel()

    async def ask(self, step_index: int, latents: Array) -> Correction | None:
        """Return the large model's answer at `latents`; None where the cloud is gone.

        An answer that comes when nobody waits any more is counted and ignored.
        """
        if self._reading.done():
            return None
        self._session.expect_progress()
        self._session.send(Correct(step_index=step_index, latents=latents))
        return cast("Correction | None", await self._answers.wait(step_index))

    async def decode(self, latents: Array, shape: tuple[int, ...]) -> Decoded | None:
        """Return clean latents as pixels of `shape`; None where the cloud is gone, or goes."""
        if self._reading.done():
            return None
        self._session.expect_progress()
        self._session.expect_pixels(shape)
        self._session.send(Decode(latents=latents))
        return cast("Decoded | None", await self._answers.wait(DECODED))

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way any more that would change the report."""
        return self._parked.is_set() and self._answers.are_all_in

    def record_traffic(self) -> None:
        """Note what crossed the stream so far."""
        self._recorder.traffic(self._session)

    async def close(self, *, grace_seconds: float = 0.5) -> None:
        """Say Close, take in what is still under way for a moment, and let the session go."""
        self._session.say_close()
        await asyncio.wait({self._reading}, timeout=grace_seconds)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._session.close()
