from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.placement import improved, spread, thinned

INDICES = tuple(float(i) for i in range(50))


@given(
    num_steps=st.integers(2, 60),
    share=st.floats(0, 1),
    gaps=st.lists(st.floats(0.01, 5), min_size=60, max_size=60),
    end=st.floats(0, 1),
)
def test_spread_calls_rise_and_begin_with_the_warm_up(
    num_steps: int, share: float, gaps: list[float], end: float
) -> None:
    coordinates = tuple(sum(gaps[:i]) for i in range(num_steps))
    num_calls = round(2 + share * (num_steps - 2))
    last_step = None if end < 0.2 else num_calls - 1 + round(end * (num_steps - num_calls))
    calls = spread(num_calls, coordinates, last_step=last_step)
    assert len(calls) == num_calls
    assert calls[:2] == (0, 1)
    assert all(earlier < later for earlier, later in pairwise(calls))
    assert calls[-1] < num_steps
    if last_step is not None and num_calls > 2:
        assert calls[-1] == last_step


def gaps_squared(calls: tuple[int, ...]) -> float:
    """Return an error that even calls make least."""
    ends = (*calls, 50)
    return float(sum((later - earlier) ** 2 for earlier, later in pairwise(ends)))


def test_calls_move_to_where_the_error_is_least() -> None:
    calls, error = improved((0, 1, 2, 3, 4, 5, 6), gaps_squared, 50)
    assert error == gaps_squared(calls)
    gaps = [later - earlier for earlier, later in pairwise((*calls[1:], 50))]
    assert max(gaps) - min(gaps) <= 2


def test_improving_never_makes_it_worse_and_keeps_what_is_not_allowed_out() -> None:
    def error(calls: tuple[int, ...]) -> float:
        return math.inf if calls[3] > 20 else gaps_squared(calls)

    start = (0, 1, 5, 20, 30)
    calls, least = improved(start, error, 50)
    assert calls[3] <= 20
    assert least <= error(start)


def test_the_call_that_is_missed_least_goes_and_the_warm_up_stays() -> None:
    assert thinned((0, 1, 20, 21, 40), gaps_squared) in ((0, 1, 20, 40), (0, 1, 21, 40))
    assert thinned((0, 1, 2), lambda calls: 0.0) == (0, 1)


@pytest.mark.parametrize("num_calls", [0, 1, 2])
def test_no_more_calls_than_asked_for(num_calls: int) -> None:
    assert spread(num_calls, INDICES) == tuple(range(num_calls))
