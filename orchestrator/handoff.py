"""Handoff: at which step the edge model takes over.

At a plan's fixed step the cloud stops by itself. `AgreementHandoff` is asked after every step that the edge shadowed,
and says one real step ahead where the edge will take over. It is pure: numbers in, reason or None out. The deadline is
no policy but a timer (`edge_client.clock`): it must ring also when nothing comes from the cloud.
"""

from __future__ import annotations

import enum
import math

from orchestrator.refresh import least_real_steps
from wire.edge_plan import Agreement
from wire.messages import Plan


class HandoffReason(enum.StrEnum):
    """Why the edge model took over; the value stands in reports and metrics."""

    PLAN = "plan"
    AGREEMENT = "agreement"
    DEADLINE = "deadline"
    CLOUD_LOST = "cloud_lost"
    CLOUD_FULL = "cloud_full"
    CLOUD_ERROR = "cloud_error"
    REQUESTED = "requested"


LOST_REASONS = (HandoffReason.CLOUD_LOST, HandoffReason.CLOUD_FULL, HandoffReason.CLOUD_ERROR)
"""Why a cloud that was to go on did not."""


class AgreementHandoff:
    """Hand off as soon as the error to expect of what remains is within the tolerance, for this prompt.

    The search measured that error for the prompts that it had. How much harder this prompt is than those is what the
    shadow measures: the ratio of its disagreement with the cloud, summed over the steps seen so far, to theirs. The
    error to expect is theirs times that ratio. A dip of the disagreement is no reason by itself: the curve that is
    scaled is the one of the whole tail.

    The bound is the plan's handoff step: there the cloud stops, whatever was measured. A tolerance of 0 is never
    reached, nor is one before anything finite was measured.

    Args:
        agreement: Curves and tolerance.
        plan: What the cloud was told; its handoff step is the bound.
        start_step: First step of the trajectory.

    Raises:
        ValueError: The curves are for another number of steps than the plan.
    """

    def __init__(self, agreement: Agreement, plan: Plan, *, start_step: int = 0) -> None:
        if len(agreement.disagreement) != plan.num_inference_steps:
            raise ValueError(
                f"the agreement's curves are for {len(agreement.disagreement)} steps, the plan has "
                f"{plan.num_inference_steps}"
            )
        self._agreement = agreement
        self._bound = plan.handoff_step
        self._real_steps = least_real_steps(plan, start_step=start_step)
        self._measured = 0.0
        self._expected = 0.0

    def observe(self, step_index: int, disagreement: float) -> None:
        """Take q as measured at a real step; what is not finite is left out."""
        if math.isfinite(disagreement):
            self._measured += disagreement
            self._expected += self._agreement.disagreement[step_index]

    @property
    def scale(self) -> float | None:
        """This prompt's disagreement over that of the search prompts; None before the first measurement."""
        return self._measured / self._expected if self._expected > 0.0 else None

    def expected_error(self, next_step: int) -> float | None:
        """Return the error of the final latents to expect if the edge takes over before `next_step`.

        None before the first measurement, infinite where the edge may not take over.
        """
        if self.scale is None:
            return None
        tail_error = self._agreement.tail_error[next_step]
        return tail_error if math.isinf(tail_error) else self.scale * tail_error  # 0 times infinity is not a number

    def why(self, next_step: int) -> str:
        """Return one line on a handoff before `next_step`."""
        expected = self.expected_error(next_step)
        if self.scale is None or expected is None:
            return "the shadow measured nothing"
        measured = f"the models disagree {self.scale:.2f} times as much as on the search prompts"
        if math.isinf(expected):
            return f"{measured}: the search knows no error of a handoff before step {next_step}"
        return (
            f"{measured}: handing off before step {next_step} is expected to cost an error of {expected:.3f}, "
            f"{self._agreement.tolerance:.3f} is allowed"
        )

    def why_not(self) -> str:
        """Return one line on a cloud that led to the end."""
        if self.scale is None:
            return "the shadow measured nothing: the cloud led to the end"
        return (
            f"the models disagree {self.scale:.2f} times as much as on the search prompts: no handoff was expected to "
            f"keep the error within {self._agreement.tolerance:.3f}, so the cloud led to the end"
        )

    def handoff_after(self, step_index: int) -> int | None:
        """Return the step before which the edge takes over, as soon as it is certain; None while it is not.

        Decided at each shadowed step for the real step that comes next: the cloud hears of it while it computes that
        one, and so computes none for nothing.

        Args:
            step_index: The real step that was observed last.
        """
        ahead = next((step for step in self._real_steps if step > step_index), None)
        certain = ahead is not None and self.decide(ahead + 1) is HandoffReason.AGREEMENT
        return ahead + 1 if ahead is not None and certain else None

    def decide(self, next_step: int) -> HandoffReason | None:
        """Return `AGREEMENT` where the expected error is within the tolerance, `PLAN` at the bound."""
        if next_step >= self._bound:
            return HandoffReason.PLAN
        expected = self.expected_error(next_step)
        return HandoffReason.AGREEMENT if expected is not None and expected < self._agreement.tolerance else None
