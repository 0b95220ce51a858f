"""Policies whose real steps follow from the plan alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from wire.messages import MIN_WARMUP_STEPS, Plan, Source

# Spectrum's window (arXiv 2603.01623): the distance to the next real step, and what each call adds to it.
_FIRST_WINDOW = 2.0
_WINDOW_GROWTH = 0.75


class ScheduledRefresh:
    """Evaluates at given steps, whatever happens.

    Args:
        real_steps: Indices of the real steps.
    """

    measure: ClassVar[None] = None

    def __init__(self, real_steps: Iterable[int]) -> None:
        self._real_steps = frozenset(real_steps)

    def foresee(self, step_index: int) -> Source:
        """Return the source of this step."""
        return self.decide(step_index)

    def decide(self, step_index: int, measured: float | None = None) -> Source:
        """Return the source of this step."""
        return Source.CLOUD if step_index in self._real_steps else Source.EXTRAPOLATED


def always(plan: Plan, start_step: int) -> list[int]:
    """Return every step from `start_step` on."""
    return list(range(start_step, plan.num_inference_steps))


def fixed(plan: Plan, start_step: int) -> list[int]:
    """Return EC-Diff's real steps and the plan's final ones (arXiv 2507.11980, its public code).

    Step i is real if `i < p` or `(i + 1 - p) % (k + 1) == 0`, counted from `start_step`: a resumed trajectory has a
    predictor without history, which warms up again.
    """

    def real(since_start: int) -> bool:
        since_warmup = since_start + 1 - plan.warmup_steps
        return since_warmup <= 0 or since_warmup % (plan.skip_interval + 1) == 0

    return [i for i in always(plan, start_step) if real(i - start_step) or i >= first_final_step(plan)]


def growing(plan: Plan, start_step: int) -> list[int]:
    """Return the warm-up, then real steps at growing distances, and the plan's final ones.

    After the warm-up, call n (from 0) comes floor(2 + 0.75 n) steps after the one before, but with no more than
    `skip_interval` extrapolated steps between them (Spectrum, arXiv 2603.01623).
    """
    # A plan from the network may name four billion steps of warm-up.
    real = list(range(start_step, min(start_step + plan.warmup_steps, plan.num_inference_steps + 1)))
    window = _FIRST_WINDOW
    while real[-1] < plan.num_inference_steps:
        real.append(real[-1] + min(int(window), plan.skip_interval + 1))
        window += _WINDOW_GROWTH
    final = range(first_final_step(plan), plan.num_inference_steps)
    return [i for i in always(plan, start_step) if i in real or i in final]


def listed(plan: Plan, start_step: int) -> list[int]:
    """Return the plan's own list; a resumed trajectory warms its predictor up at its first steps too.

    Raises:
        ValueError: A predictor would have to extrapolate before it can.
    """
    first = tuple(range(min(MIN_WARMUP_STEPS, plan.handoff_step)))
    if plan.real_steps[: len(first)] != first:
        begins = ", ".join(map(str, plan.real_steps[: len(first)])) or "nothing"
        raise ValueError(
            f"real_steps of refresh listed must begin with 0 and 1, not with {begins}: "
            f"a predictor needs {MIN_WARMUP_STEPS} real predictions before it can extrapolate"
        )
    warmup = range(start_step, start_step + MIN_WARMUP_STEPS) if start_step else ()
    return sorted(step for step in {*plan.real_steps, *warmup} if start_step <= step < plan.num_inference_steps)


def first_final_step(plan: Plan) -> int:
    """Return the step from which on the cloud evaluates every one.

    It counts from the end of the schedule, not from the handoff: what is wrong in the last steps no later step mends,
    while behind a handoff the edge model evaluates.
    """
    return plan.num_inference_steps - plan.final_steps
