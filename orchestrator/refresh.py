"""Refresh: at which steps the cloud evaluates its model, and at which it extrapolates.

A policy is pure: numbers in, `Source` out. It is made fresh for every generation, told what
happened at each step, and runs in the cloud's loop, so that a decision costs no round trip.
A policy that adapts is one more class here and one more line in `REFRESH_POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from wire.messages import Plan, Source


class RefreshPolicy(Protocol):
    """Decides for one generation."""

    def decide(self, step_index: int) -> Source:
        """Return `Source.CLOUD` to evaluate at this step, `Source.EXTRAPOLATED` to extrapolate."""
        ...

    def observe(self, step_index: int, extrapolation_error: float | None) -> None:
        """Learn what a real evaluation showed: |real - predicted| / |real|, None if nothing was predicted."""
        ...


class AlwaysRefresh:
    """Every step is a real evaluation."""

    def decide(self, step_index: int) -> Source:
        """Return `Source.CLOUD`."""
        return Source.CLOUD

    def observe(self, step_index: int, extrapolation_error: float | None) -> None:
        """Nothing to learn."""


class FixedRefresh:
    """EC-Diff's schedule: p warm-up steps, then one real evaluation in k + 1 (arXiv 2507.11980, its public code).

    Step i is real if `i < p` or `(i + 1 - p) % (k + 1) == 0`.

    Args:
        warmup_steps: p, real evaluations at the start, counted from `start_step`.
        skip_interval: k, extrapolated steps between two real ones.
        start_step: First step of a resumed trajectory: its predictor has no history and warms up again.
    """

    def __init__(self, warmup_steps: int, skip_interval: int, start_step: int = 0) -> None:
        self._warmup_steps = warmup_steps
        self._skip_interval = skip_interval
        self._start_step = start_step

    def decide(self, step_index: int) -> Source:
        """Return the source of this step."""
        since_start = step_index - self._start_step
        if since_start < self._warmup_steps:
            return Source.CLOUD
        real = (since_start + 1 - self._warmup_steps) % (self._skip_interval + 1) == 0
        return Source.CLOUD if real else Source.EXTRAPOLATED

    def observe(self, step_index: int, extrapolation_error: float | None) -> None:
        """Nothing to learn."""


REFRESH_POLICIES: dict[str, Callable[[Plan, int], RefreshPolicy]] = {
    "always": lambda plan, start_step: AlwaysRefresh(),
    "fixed": lambda plan, start_step: FixedRefresh(plan.warmup_steps, plan.skip_interval, start_step),
}


def make_refresh(plan: Plan, *, start_step: int = 0) -> RefreshPolicy:
    """Return a fresh policy for one generation that starts at `start_step`.

    Raises:
        ValueError: If the plan names no known policy.
    """
    if plan.refresh not in REFRESH_POLICIES:
        raise ValueError(f"unknown refresh {plan.refresh!r}; choose one of {', '.join(REFRESH_POLICIES)}")
    return REFRESH_POLICIES[plan.refresh](plan, start_step)
