from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.refresh.adaptive import AdaptiveRefresh
from orchestrator.refresh.interface import RefreshPolicy
from orchestrator.refresh.scheduled import ScheduledRefresh, always, fixed, growing, listed
from wire.messages import MIN_WARMUP_STEPS, Plan

_BOUNDS = ("warmup_steps", "skip_interval", "final_steps")


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What there is to know of a policy before it is made.

    Attributes:
        reads: Fields of the plan that mean something to it.
        warmup_steps: Default of the plan's field, as are the next ones.
        skip_interval: Default.
        final_steps: Default.
        tolerance: Default.
    """

    reads: tuple[str, ...] = ()
    warmup_steps: int = MIN_WARMUP_STEPS
    skip_interval: int = 0
    final_steps: int = 0
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Scheduled(_Kind):
    """A policy that the plan decides alone.

    Attributes:
        real_steps: Returns its real steps from a start step to the end of the schedule, rising.
    """

    real_steps: Callable[[Plan, int], list[int]]

    def make(self, plan: Plan, start_step: int) -> RefreshPolicy:
        """Return a fresh policy."""
        return ScheduledRefresh(self.real_steps(plan, start_step))


@dataclass(frozen=True, kw_only=True)
class Adaptive(_Kind):
    """A policy that decides at run time.

    Attributes:
        measure: Name of the number it decides from.
        accumulates: Whether it sums that number up since the last real step.
    """

    measure: str
    accumulates: bool
    reads: tuple[str, ...] = (*_BOUNDS, "tolerance")
    warmup_steps: int = 3
    final_steps: int = 1

    def make(self, plan: Plan, start_step: int) -> RefreshPolicy:
        """Return a fresh policy."""
        return AdaptiveRefresh(plan, start_step, measure=self.measure, accumulates=self.accumulates)

    def real_steps(self, plan: Plan, start_step: int) -> list[int]:
        """Return its real steps if the tolerance never triggers."""
        return fixed(plan, start_step)


REFRESH_POLICIES: dict[str, Scheduled | Adaptive] = {
    "always": Scheduled(real_steps=always),
    "fixed": Scheduled(real_steps=fixed, reads=_BOUNDS, skip_interval=2),
    "growing": Scheduled(real_steps=growing, reads=_BOUNDS, warmup_steps=3, skip_interval=8),
    "listed": Scheduled(real_steps=listed, reads=("real_steps",)),
    "embedded-error": Adaptive(measure="embedded-error", accumulates=True, skip_interval=8, tolerance=0.005),
    # delta .01 and at most 4 in a row: arXiv 2410.09873
    "third-difference": Adaptive(measure="third-difference", accumulates=False, skip_interval=4, tolerance=0.01),
    # tau 5 %: arXiv 2507.02860
    "easycache": Adaptive(measure="output-change", accumulates=True, skip_interval=8, tolerance=0.05),
}

# What must be left alone where it means nothing, with the value that says so.
_SILENT = {"tolerance": 0.0, "final_steps": 0, "real_steps": ()}


def make_refresh(plan: Plan, *, start_step: int = 0) -> RefreshPolicy:
    """Return a fresh policy for one generation that starts at `start_step`.

    Raises:
        ValueError: The plan names no known policy, fixes what that policy does not read, lists too few real
            steps, or needs more real evaluations than it allows.
    """
    _check_fields(plan)
    if plan.max_cloud_calls is not None:
        needed = len(least_real_steps(plan, start_step=start_step))
        if needed > plan.max_cloud_calls:
            raise ValueError(
                f"handoff_step {plan.handoff_step} needs {needed} cloud calls but max_cloud_calls is "
                f"{plan.max_cloud_calls}: lower the handoff step or raise the bound"
            )
    return REFRESH_POLICIES[plan.refresh].make(plan, start_step)


def least_real_steps(plan: Plan, *, start_step: int = 0) -> list[int]:
    """Return the steps before the handoff that a plan evaluates if it evaluates as few as it may.

    All of its real steps, unless its policy adapts.

    Raises:
        ValueError: As `make_refresh`, whatever the budget.
    """
    _check_fields(plan)
    return [i for i in REFRESH_POLICIES[plan.refresh].real_steps(plan, start_step) if i < plan.handoff_step]


def _check_fields(plan: Plan) -> None:
    if plan.refresh not in REFRESH_POLICIES:
        raise ValueError(f"unknown refresh {plan.refresh!r}; choose one of {', '.join(REFRESH_POLICIES)}")
    for name, silent in _SILENT.items():
        if getattr(plan, name) != silent and name not in REFRESH_POLICIES[plan.refresh].reads:
            raise ValueError(f"{name} means nothing to refresh {plan.refresh}: leave it out, or choose another refresh")
