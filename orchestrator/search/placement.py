"""Where to put a number of cloud calls: even starts, then calls moved while that helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from wire.messages import MIN_WARMUP_STEPS

_MOVES = (-1, 1, -2, 2, -4, 4)
_JOINT_MOVES = (-1, 1)

Error = Callable[[tuple[int, ...]], float]
"""Error of a choice of calls; infinite where it is not allowed."""


def spread(num_calls: int, coordinates: Sequence[float], *, last_step: int | None = None) -> tuple[int, ...]:
    """Return calls that lie evenly in a coordinate of the steps, after the warm-up that every predictor needs.

    Args:
        num_calls: At most as many as there are steps to `last_step`.
        coordinates: Where each step lies, rising: its index, or lambda.
        last_step: The last call; None: halfway between the last step and where the next call would be.
    """
    warmup = list(range(min(MIN_WARMUP_STEPS, num_calls)))
    left = num_calls - len(warmup)
    if not left:
        return tuple(warmup)
    begin = coordinates[warmup[-1]]
    end, intervals = (coordinates[-1], left + 0.5) if last_step is None else (coordinates[last_step], float(left))
    final = len(coordinates) - 1 if last_step is None else last_step
    calls = warmup
    for k in range(1, left + 1):
        wanted = begin + (end - begin) * k / intervals
        nearest = min(range(len(coordinates)), key=lambda i: abs(coordinates[i] - wanted))
        calls.append(min(max(nearest, calls[-1] + 1), final - (left - k)))
    return tuple(calls)


def thinned(calls: tuple[int, ...], error: Error) -> tuple[int, ...]:
    """Return the calls without the one that is missed least; the warm-up stays."""
    fewer = [calls[:k] + calls[k + 1 :] for k in range(MIN_WARMUP_STEPS, len(calls))]
    return min(fewer, key=error)


def improved(calls: tuple[int, ...], error: Error, num_steps: int) -> tuple[tuple[int, ...], float]:
    """Move one call, or a call with all after it, by a few steps while the error falls; return calls and error."""
    best = error(calls)
    before = math.inf
    while best < before:
        before = best
        for k in range(MIN_WARMUP_STEPS, len(calls)):
            for end, move in [*((k + 1, each) for each in _MOVES), *((len(calls), each) for each in _JOINT_MOVES)]:
                moved = (*calls[:k], *(each + move for each in calls[k:end]), *calls[end:])
                if _rises(moved, num_steps) and (found := error(moved)) < best:
                    calls, best = moved, found
    return calls, best


def _rises(calls: tuple[int, ...], num_steps: int) -> bool:
    return calls[-1] < num_steps and all(earlier < later for earlier, later in pairwise(calls))
