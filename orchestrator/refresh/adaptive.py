"""Policies that decide at run time, from what is measured."""

from __future__ import annotations

from orchestrator.refresh.scheduled import first_final_step
from wire.messages import Plan, Source


class AdaptiveRefresh:
    """Evaluates when a measured number reaches the plan's tolerance, within what the plan allows.

    A tolerance of 0 makes every step real. Where nothing can be measured yet, or what was measured is not a number, the
    step is real. The bounds come first:

    - `warmup_steps` from the start (a resumed trajectory's own) and `final_steps` at the end of the schedule are real.
    - At most `skip_interval` steps in a row are extrapolated. With a tolerance that never triggers this leaves
      `fixed` with that interval.
    - At most `max_cloud_calls` steps are real. No call comes sooner after the one before than if all that are left were
      spread evenly up to the handoff or the final steps; until then the tolerance gives way. Calls that were not needed
      let later ones come sooner. So the budget moves no handoff at run time; `make_refresh` refuses one that cannot
      reach it at the longest intervals.

    Args:
        plan: Bounds and tolerance.
        start_step: First step of the trajectory.
        measure: Name of the number it decides from.
        accumulates: Whether the numbers since the last real step are summed, or each stands alone.
    """

    def __init__(self, plan: Plan, start_step: int, *, measure: str, accumulates: bool) -> None:
        self.measure = measure
        self._accumulates = accumulates
        self._tolerance = plan.tolerance
        self._max_in_a_row = plan.skip_interval
        self._handoff_step = plan.handoff_step
        self._first_step = start_step + plan.warmup_steps
        self._final_step = first_final_step(plan)
        self._calls_left = plan.num_inference_steps if plan.max_cloud_calls is None else plan.max_cloud_calls
        self._in_a_row = 0
        self._sum = 0.0

    def foresee(self, step_index: int) -> Source | None:
        """Return `Source.CLOUD` where the bounds alone say so, else None."""
        within = self._first_step <= step_index < self._final_step
        return None if within and self._max_in_a_row else Source.CLOUD

    def decide(self, step_index: int, measured: float | None = None) -> Source:
        """Return the source of this step."""
        due = self.foresee(step_index) is Source.CLOUD or self._in_a_row >= self._max_in_a_row
        if due or (self._triggers(measured) and self._affords(step_index)):
            self._calls_left -= 1
            self._in_a_row, self._sum = 0, 0.0
            return Source.CLOUD
        self._in_a_row += 1
        return Source.EXTRAPOLATED

    def _triggers(self, measured: float | None) -> bool:
        if measured is None:
            return True
        self._sum = self._sum + measured if self._accumulates else measured
        return not self._sum < self._tolerance  # NaN is not below

    def _affords(self, step_index: int) -> bool:
        """Whether this step is at least as far from the last real one as an even spread of the calls left puts it."""
        free_end = min(self._handoff_step, self._final_step)
        num_calls = self._calls_left - max(0, self._handoff_step - self._final_step)
        distance = self._in_a_row + 1
        return distance * (num_calls + 1) >= free_end - step_index + distance
