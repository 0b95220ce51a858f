from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_service.scheduling import Candidate, Turn, pick_turn

MAX_WAIT_SECONDS = 8.0


def candidate(session_id: str, ready_at: float, key: str | None = "shape", deadline_at: float = math.inf) -> Candidate:
    return Candidate(session_id=session_id, ready_at=ready_at, key=key, deadline_at=deadline_at)


def pick(candidates: list[Candidate], *, max_batch: int, now: float = 5.0) -> Turn:
    return pick_turn(candidates, now=now, max_wait_seconds=MAX_WAIT_SECONDS, max_batch=max_batch)


def test_nobody_waits_nobody_runs() -> None:
    assert pick([], max_batch=4) == Turn()


def test_extrapolated_steps_do_not_wait_for_an_evaluation() -> None:
    turn = pick([candidate("a", 1.0), candidate("b", 2.0, None), candidate("c", 3.0, None)], max_batch=4)
    assert turn == Turn(extrapolate=("b", "c"))


def test_equal_keys_share_a_batch_the_longest_waiting_first() -> None:
    waiting = [candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0, "other"), candidate("d", 1.5)]
    assert pick(waiting, max_batch=4) == Turn(evaluate=("b", "d", "a"))


def test_a_batch_has_at_most_max_batch_sessions() -> None:
    waiting = [candidate(name, index) for index, name in enumerate("abcde")]
    assert pick(waiting, max_batch=2) == Turn(evaluate=("a", "b"))


@settings(deadline=None)
@given(
    keys=st.lists(st.sampled_from(["small", "large"]), min_size=1, max_size=12),
    max_batch=st.integers(1, 5),
)
def test_nobody_is_served_twice_before_everybody_was_served_once(keys: list[str], max_batch: int) -> None:
    ready_at = {str(index): float(index) for index in range(len(keys))}
    unserved = set(ready_at)
    now = float(len(keys))
    while unserved:
        candidates = [candidate(name, ready_at[name], keys[int(name)]) for name in ready_at]
        turn = pick(candidates, max_batch=max_batch, now=now)
        assert turn.evaluate[0] in unserved
        for name in turn.evaluate:
            now += 1.0
            ready_at[name] = now
        unserved -= set(turn.evaluate)


def test_the_nearest_deadline_goes_first_and_none_is_the_last() -> None:
    waiting = [
        candidate("never", 0.0),
        candidate("late", 1.0, deadline_at=90.0),
        candidate("soon", 2.0, deadline_at=9.0),
    ]
    assert pick(waiting, max_batch=4) == Turn(evaluate=("soon", "late", "never"))


def test_a_nearer_deadline_of_another_key_does_not_share_the_batch() -> None:
    waiting = [candidate("a", 0.0), candidate("b", 1.0, "other", deadline_at=9.0), candidate("c", 2.0)]
    assert pick(waiting, max_batch=4) == Turn(evaluate=("b",))


@settings(deadline=None)
@given(
    keys=st.lists(st.sampled_from(["small", "large"]), min_size=2, max_size=12),
    max_batch=st.integers(1, 5),
    num_patient=st.integers(1, 3),
)
def test_no_stream_of_urgent_sessions_starves_a_patient_one(keys: list[str], max_batch: int, num_patient: int) -> None:
    """Each turn takes a second; all but the first few sessions have a deadline that is always about to pass."""
    ready_at = dict.fromkeys(map(str, range(len(keys))), 0.0)
    now, longest = 0.0, 0.0
    for _ in range(100):
        candidates = [
            candidate(name, since, keys[int(name)], math.inf if int(name) < num_patient else now + 1.0)
            for name, since in ready_at.items()
        ]
        turn = pick(candidates, max_batch=max_batch, now=now)
        now += 1.0
        for name in turn.evaluate:
            longest = max(longest, now - ready_at[name])
            ready_at[name] = now
    # Once overdue, only sessions that have waited longer go ahead, one turn each at most.
    assert longest <= MAX_WAIT_SECONDS + len(keys) + 1.0
