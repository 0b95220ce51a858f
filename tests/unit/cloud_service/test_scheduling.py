from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_service.scheduling import Candidate, Turn, pick_turn


def candidate(session_id: str, ready_at: float, key: str | None = "shape") -> Candidate:
    return Candidate(session_id=session_id, ready_at=ready_at, key=key)


def test_nobody_waits_nobody_runs() -> None:
    assert pick_turn([], max_batch=4) == Turn()


def test_extrapolated_steps_do_not_wait_for_an_evaluation() -> None:
    turn = pick_turn([candidate("a", 1.0), candidate("b", 2.0, None), candidate("c", 3.0, None)], max_batch=4)
    assert turn == Turn(extrapolate=("b", "c"))


def test_equal_keys_share_a_batch_the_longest_waiting_first() -> None:
    waiting = [candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0, "other"), candidate("d", 1.5)]
    assert pick_turn(waiting, max_batch=4) == Turn(evaluate=("b", "d", "a"))


def test_a_batch_has_at_most_max_batch_sessions() -> None:
    waiting = [candidate(name, index) for index, name in enumerate("abcde")]
    assert pick_turn(waiting, max_batch=2) == Turn(evaluate=("a", "b"))


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
        turn = pick_turn([candidate(name, ready_at[name], keys[int(name)]) for name in ready_at], max_batch=max_batch)
        assert turn.evaluate[0] in unserved
        for name in turn.evaluate:
            now += 1.0
            ready_at[name] = now
        unserved -= set(turn.evaluate)
