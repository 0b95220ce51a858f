"""The sessions that are open, as the event loop sees them: who may come in, who gets which event."""

from __future__ import annotations

import asyncio
import math

from cloud_service.metrics import Metrics
from cloud_service.session import Parked, Session, SessionEvent
from wire.errors import Busy, EcdiffError, NotServing

# A parked session holds its conditioning and no place on the device, so more of them fit.
PARKED_PER_RUNNING = 4
_HANGS = "the cloud's device hangs"
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.1, 30.0


class Registry:
    """Open sessions by id.

    Args:
        max_sessions: Most sessions that run at a time; parked ones are extra.
        max_sessions_per_client: Most of these that are one client's; of its parked ones in proportion.
        max_batch: Most sessions in one forward pass.
        metrics: Where the number of sessions is shown.

    Attributes:
        hangs: Whether the device does.
    """

    def __init__(self, *, max_sessions: int, max_sessions_per_client: int, max_batch: int, metrics: Metrics) -> None:
        self._max_sessions = max_sessions
        self._max_sessions_per_client = max_sessions_per_client
        self._max_batch = max_batch
        self._metrics = metrics
        self._sessions: dict[str, Session] = {}
        self._draining = False
        self.hangs = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def num_running(self) -> int:
        """Sessions that hold one of the `max_sessions` places."""
        return sum(not session.parked for session in self._sessions.values())

    def add(self, session: Session, *, step_seconds: float) -> None:
        """Give `session` a place.

        Args:
            session: The newcomer.
            step_seconds: What an evaluation takes at present, for the advice to whom is refused.

        Raises:
            NotServing: The service is draining, or its device hangs.
            Busy: All places are taken, or all that one client may have.
        """
        if self._draining:
            raise NotServing("the service is shutting down")
        if self.hangs:
            raise NotServing(_HANGS)
        if self.num_running >= self._max_sessions:
            raise Busy(f"all {self._max_sessions} places are taken", self._retry_after_seconds(step_seconds))
        own = sum(not each.parked for each in self._sessions.values() if each.client == session.client)
        if own >= self._max_sessions_per_client:
            raise Busy(
                f"this client has {own} sessions here, as many as one client may have",
                self._retry_after_seconds(step_seconds),
            )
        self._sessions[session.session_id] = session
        self._update()

    def deliver(self, events: list[tuple[str, SessionEvent]]) -> None:
        """Hand events to their sessions; one for a session that is gone is dropped."""
        for session_id, event in events:
            session = self._sessions.get(session_id)
            if session is None:
                continue
            session.deliver(event)
            if isinstance(event, Parked):
                self._after_parking(session)
            elif isinstance(event, EcdiffError):
                self.remove(session_id)

    def remove(self, session_id: str) -> None:
        """Forget a session."""
        self._sessions.pop(session_id, None)
        self._update()

    async def drain(self, grace_seconds: float) -> None:
        """Let nobody in, let running sessions finish within `grace_seconds`, then end those that did not.

        A session has finished when its last message was taken; a parked one has nothing to finish.
        """
        self._draining = True
        for session in self._sessions.values():
            if session.parked:
                session.finish()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._empty.wait()
        except TimeoutError:
            self.fail_all(NotServing("the service is shutting down"))

    def set_hanging(self, hangs: bool) -> None:
        """Let nobody in while the device hangs, and let those who wait for it go on elsewhere."""
        if hangs and not self.hangs:
            self.fail_all(NotServing(_HANGS))
        self.hangs = hangs

    def fail_all(self, error: EcdiffError) -> None:
        """End every session with `error`."""
        for session in self._sessions.values():
            session.fail(error)

    def _after_parking(self, session: Session) -> None:
        self._update()
        if self._draining:
            session.finish()
        parked = [each for each in self._sessions.values() if each.parked and not each.ended]
        own = [each for each in parked if each.client == session.client]
        # A client that parks too many pays with its own, before anybody else does.
        if len(own) > PARKED_PER_RUNNING * self._max_sessions_per_client:
            _longest_silent(own).fail(Busy("too many sessions of this client are parked"))
        elif len(parked) > PARKED_PER_RUNNING * self._max_sessions:
            _longest_silent(parked).fail(Busy("too many sessions are parked"))

    def _retry_after_seconds(self, step_seconds: float) -> float:
        fewest_steps = min(session.remaining_steps for session in self._sessions.values() if not session.parked)
        passes_per_step = math.ceil(self._max_sessions / self._max_batch)
        estimate = fewest_steps * step_seconds * passes_per_step
        return min(max(estimate, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)

    def _update(self) -> None:
        self._metrics.sessions.set(len(self._sessions))
        if self._sessions:
            self._empty.clear()
        else:
            self._empty.set()


def _longest_silent(sessions: list[Session]) -> Session:
    return min(sessions, key=lambda each: each.last_heard)
