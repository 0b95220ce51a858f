"""Handoff: at which step the edge model takes over.

The edge asks its policy after every step of the cloud that it hears of. `FixedHandoff` keeps to the plan (the
cloud stops there by itself); a policy that measures agreement returns a reason earlier and the edge then
sends `HandOff`. Policies are pure: numbers in, reason or None out.
"""

from __future__ import annotations

import enum
from typing import Protocol

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


class HandoffPolicy(Protocol):
    """Decides for one generation."""

    def decide(self, next_step: int) -> HandoffReason | None:
        """Return why the edge should take over before `next_step`, or None to let the cloud go on."""
        ...


class FixedHandoff:
    """Hand off at the plan's step, for every prompt."""

    def __init__(self, plan: Plan) -> None:
        self._handoff_step = plan.handoff_step

    def decide(self, next_step: int) -> HandoffReason | None:
        """Return `PLAN` from the plan's handoff step on."""
        return HandoffReason.PLAN if next_step >= self._handoff_step else None
