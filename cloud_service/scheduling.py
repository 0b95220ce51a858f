"""The step scheduler: which sessions take the device next. Numbers in, session ids out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A session that could take a step now.

    Attributes:
        session_id: Whose step it is.
        ready_at: Since when it has been waiting for the device, seconds on a monotonic clock.
        key: What must be equal for two sessions to share one forward pass (shapes and dtype); None
            where the step is extrapolated and needs no pass.
    """

    session_id: str
    ready_at: float
    key: Hashable | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the device does next: extrapolations, or one batch of evaluations."""

    extrapolate: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


def pick_turn(candidates: Sequence[Candidate], *, max_batch: int) -> Turn:
    """Choose the next turn.

    Extrapolated steps cost next to nothing, so they never wait for a batch: every session that has one
    takes it before the next evaluation starts. Evaluations go first come, first served: the session that
    has waited longest, with the longest waiting ones of the same key. A session that was served starts to
    wait anew, which makes it a round robin.

    Args:
        candidates: Sessions with a step to take, in any order.
        max_batch: Most sessions in one forward pass.
    """
    extrapolated = tuple(candidate.session_id for candidate in candidates if candidate.key is None)
    if extrapolated:
        return Turn(extrapolate=extrapolated)
    waiting = by_waiting_time(candidates)
    batch = [candidate.session_id for candidate in waiting if candidate.key == waiting[0].key]
    return Turn(evaluate=tuple(batch[:max_batch]))


def by_waiting_time(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return `candidates`, the longest waiting first."""
    return sorted(candidates, key=lambda candidate: candidate.ready_at)
