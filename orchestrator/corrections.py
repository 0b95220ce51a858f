"""Corrections: at which steps after the handoff the edge asks the cloud once more.

The edge asks its policy before every step that it leads. A policy says what it wants; whether the wish is granted - the
budget, the deadline, a cloud that is gone - is `Granted`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wire.edge_plan import EdgePlan


class CorrectionPolicy(Protocol):
    """Decides for one generation."""

    def wants(self, step_index: int, disagreement: Callable[[], float]) -> bool:
        """Return whether the cloud should evaluate this step; asked once for each step, in order.

        Args:
            step_index: The next step.
            disagreement: Measures mean |edge - extrapolation from the cloud's| / mean |extrapolation| there; costs an
                evaluation of the small model, which the step then needs no more.
        """

    def corrected(self, step_index: int) -> None:
        """Note that the cloud's answer for this step is used."""


class ListedCorrections:
    """At steps that are known beforehand: `none`, `final` and `planned`."""

    def __init__(self, step_indices: Sequence[int]) -> None:
        self._step_indices = frozenset(step_indices)

    def wants(self, step_index: int, disagreement: Callable[[], float]) -> bool:
        """Return whether the step is listed."""
        return step_index in self._step_indices

    def corrected(self, step_index: int) -> None:
        """Nothing to note."""


class DisagreementCorrections:
    """When the disagreement summed since the last correction, weighed by how far it moves the latents, is too large.

    Edge and extrapolation err in different ways - the one is a smaller model, the other an old answer - so that where
    they agree both are likely right. What was summed is forgotten only when the cloud has answered: a wish that is not
    granted is repeated at the next step.

    Where nothing can be compared it asks, whatever the tolerance: without the shadow that is twice, since two of the
    cloud's predictions are enough to extrapolate. A disagreement that is not a number asks too: then the small model
    failed, and the cloud may save the step.

    Args:
        sensitivity: c_i of each step (`diffusion.sensitivity.latents_sensitivities`).
        tolerance: What the sum may not reach; 0 asks at every step.
    """

    def __init__(self, sensitivity: Sequence[float], tolerance: float) -> None:
        self._sensitivity = sensitivity
        self._tolerance = tolerance
        self._sum = 0.0

    def wants(self, step_index: int, disagreement: Callable[[], float]) -> bool:
        """Return whether the sum has reached the tolerance at this step."""
        if self._tolerance > 0.0:
            self._sum += self._sensitivity[step_index] * disagreement()
        return not self._sum < self._tolerance  # NaN is not below

    def corrected(self, step_index: int) -> None:
        """Begin a new sum."""
        self._sum = 0.0


def make_corrections(plan: EdgePlan, sensitivity: Sequence[float]) -> CorrectionPolicy:
    """Return a fresh policy; `sensitivity` has one number a step."""
    last_step = len(sensitivity) - 1
    match plan.corrections:
        case "disagreement":
            return DisagreementCorrections(sensitivity, plan.tolerance)
        case "planned":
            return ListedCorrections(plan.correction_steps)
        case "final":
            return ListedCorrections((last_step,))
    return ListedCorrections(())


def calls_left(plan: EdgePlan, calls_made: int) -> float:
    """Return how many evaluations in the cloud may still be made; infinite without a bound."""
    return math.inf if plan.max_cloud_calls is None else plan.max_cloud_calls - calls_made


@dataclass(kw_only=True)
class CorrectionPrice:
    """What a correction costs now, in seconds; each may change from step to step.

    Attributes:
        rtt_seconds: Round trip, with the latents' time on the wire.
        cloud_step_seconds: One evaluation of the large model, waiting included.
        edge_step_seconds: One evaluation of the small model.
        decode_seconds: The decoder.
    """

    rtt_seconds: float = 0.0
    cloud_step_seconds: float = 0.0
    edge_step_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """From asking to going on; the small model's evaluation at the same latents runs meanwhile."""
        return max(self.rtt_seconds + self.cloud_step_seconds, self.edge_step_seconds)

    def seconds_after(self, step_index: int, num_steps: int) -> float:
        """Return what is left to do once step `step_index` is done."""
        return (num_steps - step_index - 1) * self.edge_step_seconds + self.decode_seconds


@dataclass(kw_only=True)
class Granted:
    """A policy's wishes within the budget and the deadline.

    A call counts when it is granted, not when it is answered: the cloud evaluates what the edge asked for, even if the
    answer comes too late.

    Args:
        policy: What is wanted.
        num_inference_steps: Of the whole trajectory.
        calls_left: Evaluations in the cloud that may still be made; infinite for no bound.
        seconds_left: Until the deadline, asked anew each time; infinite without one.
        price: What a correction costs.
    """

    policy: CorrectionPolicy
    num_inference_steps: int
    calls_left: float = math.inf
    seconds_left: Callable[[], float] = lambda: math.inf
    price: CorrectionPrice = field(default_factory=CorrectionPrice)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    def wants_call(self, step_index: int, disagreement: Callable[[], float]) -> bool:
        """Return whether to ask the cloud, which then is a call of the budget.

        A wish that the deadline refuses is noted in `skipped`. Without budget nothing is wished for.
        """
        if self.calls_left <= 0 or not self.policy.wants(step_index, disagreement):
            return False
        spare = self.seconds_left() - self.price.seconds_after(step_index, self.num_inference_steps)
        if self.price.seconds > spare:
            self.skipped.append((step_index, "deadline"))
            return False
        self.calls_left -= 1
        return True

    def corrected(self, step_index: int) -> None:
        """Note that the cloud's answer for this step is used."""
        self.policy.corrected(step_index)

    def refuse_all(self) -> None:
        """The cloud cannot be asked any more."""
        self.calls_left = 0
