"""How the error depends on when the edge takes over: `SearchedPlan.tail_error`."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from orchestrator.search.candidate import Candidate, Screen
from orchestrator.search.pareto import rank_correlation
from wire.messages import MIN_WARMUP_STEPS


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A hybrid plan that can hand off elsewhere.

    Attributes:
        plan: The plan, at its own handoff step.
        real_steps: Those of the plan, and the ones for a prompt that stays with the cloud for longer: at each
            correction, and halfway between two.
        num_steps: Of the plan.
    """

    plan: Candidate
    real_steps: tuple[int, ...]
    num_steps: int

    def at(self, handoff_step: int) -> Candidate:
        """Return what is run when the edge takes over before `handoff_step`."""
        return replace(
            self.plan,
            real_steps=tuple(i for i in self.real_steps if i < handoff_step),
            handoff_step=handoff_step,
            correction_steps=tuple(i for i in self.plan.correction_steps if i >= handoff_step),
        )

    def anchors(self) -> tuple[int, ...]:
        """Return the handoff steps to measure closed loop, beside the plan's own: the ends, and one within each."""
        after = [i + 1 for i in self.real_steps]
        before = [h for h in after if MIN_WARMUP_STEPS <= h < self.plan.handoff_step]
        beyond = [h for h in after if h > self.plan.handoff_step]
        chosen = {*before[:1], *before[len(before) // 2 :][:1], *before[-1:], *beyond[: len(beyond) // 2 + 1][-1:]}
        return (*sorted(chosen), self.num_steps)


def make_tail(plan: Candidate, num_steps: int) -> Tail:
    """Return a plan with real steps to the end."""
    between = [(earlier + later) // 2 for earlier, later in pairwise(plan.correction_steps)]
    more = sorted({*plan.correction_steps, *(i for i in between if i > plan.handoff_step)})
    return Tail(plan=plan, real_steps=(*plan.real_steps, *more), num_steps=num_steps)


def tail_errors(tail: Tail, measured: Mapping[int, Sequence[float]], screen: Screen) -> tuple[float, ...]:
    """Return the error to expect from each handoff step, 0 .. num_steps.

    Where it was not measured it is what the screen says, times what the screen was off by at the measured steps around;
    the screen knows every step, and no other curve has the corrections in it. Before the second real step it is
    infinite: nobody hands off there.

    Args:
        tail: The plan.
        measured: Handoff step -> closed-loop error of each prompt; the plan's own at least.
        screen: Guesses errors.
    """
    steps = sorted(measured)
    factors = [fmean(measured[h]) / max(screen.error(tail.at(h)), 1e-9) for h in steps]
    errors = []
    for h in range(tail.num_steps + 1):
        if h < MIN_WARMUP_STEPS:
            errors.append(math.inf)
        elif h in measured:
            errors.append(fmean(measured[h]))
        else:
            errors.append(screen.error(tail.at(h)) * _between(h, steps, factors))
    return tuple(errors)


def _between(step: int, steps: Sequence[int], factors: Sequence[float]) -> float:
    """Return the factor at a step, on a line between its neighbours, flat outside."""
    after = bisect_right(steps, step)
    if after in (0, len(steps)):
        return factors[min(after, len(steps) - 1)]
    share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
    return factors[after - 1] + share * (factors[after] - factors[after - 1])


def scale_correlations(
    tails: Sequence[tuple[Tail, Mapping[int, Sequence[float]]]],
    disagreement: Sequence[Sequence[float]],
) -> list[float]:
    """Return for each measured step at which the edge took over the rank correlation over prompts of scale and error.

    The scale is what the handoff by agreement measures: a prompt's q at the shadowed steps over the mean prompt's.

    Args:
        tails: Plans and their measured errors by handoff step.
        disagreement: q of each prompt at each step.
    """
    found = []
    for tail, measured in tails:
        for handoff_step, errors in measured.items():
            shadowed = [i for i in tail.real_steps if i < handoff_step]
            scales = [fmean(curve[i] for i in shadowed) for curve in disagreement]
            correlated = rank_correlation(scales, errors)
            if correlated is not None and handoff_step < tail.num_steps:
                found.append(correlated)
    return found
