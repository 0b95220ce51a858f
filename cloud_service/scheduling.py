"""The step scheduler: which sessions take the device next. Numbers in, session ids out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MAX_WAIT_EVALUATIONS = 8
"""Evaluations that a session may wait for before it goes ahead of nearer deadlines."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A session that could take a step now.

    Attributes:
        session_id: Whose step it is.
        ready_at: Since when it has been waiting for the device, seconds on a monotonic clock.
        key: What must be equal for two sessions to share one forward pass (shapes and dtype); None
            where the step is extrapolated and needs no pass.
        deadline_at: When its client stops waiting, on the same clock; infinite where it named no deadline.
    """

    session_id: str
    ready_at: float
    key: Hashable | None
    deadline_at: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the device does next: extrapolations, or one batch of evaluations."""

    extrapolate: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


def pick_turn(candidates: Sequence[Candidate], *, now: float, max_wait_seconds: float, max_batch: int) -> Turn:
    """Choose the next turn.

    Extrapolated steps cost next to nothing, so they never wait for a batch: every session that has one
    takes it before the next evaluation starts. An evaluation goes to the first in line, with those of the
    same key that stand behind it. A session that was served starts to wait anew, so that without deadlines
    it is a round robin, whatever the keys.

    Args:
        candidates: Sessions with a step to take, in any order.
        now: On the candidates' clock.
        max_wait_seconds: See `in_line`.
        max_batch: Most sessions in one forward pass.
    """
    extrapolated = tuple(candidate.session_id for candidate in candidates if candidate.key is None)
    if extrapolated:
        return Turn(extrapolate=extrapolated)
    line = in_line(candidates, now=now, max_wait_seconds=max_wait_seconds)
    batch = [candidate.session_id for candidate in line if candidate.key == line[0].key]
    return Turn(evaluate=tuple(batch[:max_batch]))


def in_line(candidates: Sequence[Candidate], *, now: float, max_wait_seconds: float) -> list[Candidate]:
    """Return the order in which sessions are served.

    The nearest deadline comes first, and of equal ones (none is one of them) the longest waiting. But a session that
    has waited for `max_wait_seconds` goes before all that have not: no stream of urgent ones starves it.
    """

    def place(candidate: Candidate) -> tuple[float, float]:
        overdue = now - candidate.ready_at >= max_wait_seconds
        return (-math.inf if overdue else candidate.deadline_at), candidate.ready_at

    return sorted(candidates, key=place)
