"""What the edge does beside the cloud and after it; `wire.messages.Plan` is what the cloud does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

CORRECTIONS = ("none", "final", "disagreement", "planned")

# What can extrapolate a residual. Those that convert (`x0-linear`, `epsilon-linear`) cannot: a difference of two
# predictions is no prediction at the latents. Nor `ecdiff`, which is for the paper's mode.
RESIDUALS = ("reuse", "linear", "quadratic", "chebyshev", "etc")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the edge needs to hand off by what it measures for this prompt.

    Attributes:
        disagreement: q_i of the plan at each step: mean |edge - cloud| / |cloud| over the search prompts, both models
            at the latents of the all-cloud trajectory.
        tail_error: Error of the final latents (relative L2 to all-cloud) to expect when the edge takes over before step
            i and the plan's corrections follow, for i = 0 .. num_inference_steps; infinite where the edge may not yet.
        tolerance: Error of the final latents that is allowed.

    Raises:
        ValueError: Lengths that do not fit, or a curve or tolerance that is negative or not a number.
    """

    disagreement: tuple[float, ...]
    tail_error: tuple[float, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if len(self.tail_error) != len(self.disagreement) + 1:
            raise ValueError(
                f"tail_error must have one value more than disagreement has ({len(self.disagreement)}), "
                f"not {len(self.tail_error)}"
            )
        for step, value in enumerate(self.disagreement):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"disagreement must be numbers of at least 0, not {value} (step {step})")
        for step, value in enumerate(self.tail_error):
            if not value >= 0.0:  # NaN is not
                raise ValueError(f"tail_error must be numbers of at least 0 or infinite, not {value} (step {step})")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0, not {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class EdgePlan:
    """The edge's part of a generation.

    Attributes:
        shadow: Whether the edge evaluates its own model at the cloud's real steps while the cloud leads. Without it
            there is neither agreement nor a residual before the first correction.
        residual: Predictor that extrapolates cloud minus edge, one of `RESIDUALS`; None: the edge predicts with its own
            model alone.
        fade: Factor of the extrapolated residual at each step, 0..1; empty: 1 everywhere.
        reach: Steps after the last real step or correction for which the extrapolated residual is trusted; over as many
            again it goes to 0. None: for ever.
        corrections: When the cloud is asked after the handoff, one of `CORRECTIONS`: never; at the last step; when the
            summed disagreement of edge and extrapolation reaches `tolerance`; at `correction_steps`.
        correction_steps: The steps of `planned`, rising; those before the actual handoff are not run.
        tolerance: What `disagreement` lets its sum reach, as an error of the latents; 0: a correction at every step.
        max_cloud_calls: Hard bound on evaluations in the cloud, corrections included; None for none.
        agreement: What the edge hands off by; None: where the plan says.

    Raises:
        ValueError: With the name and the value of whatever does not fit.
    """

    shadow: bool = False
    residual: str | None = None
    fade: tuple[float, ...] = ()
    reach: int | None = None
    corrections: str = "none"
    correction_steps: tuple[int, ...] = ()
    tolerance: float = 0.0
    max_cloud_calls: int | None = None
    agreement: Agreement | None = None

    def __post_init__(self) -> None:
        if self.corrections not in CORRECTIONS:
            raise ValueError(f"unknown corrections {self.corrections!r}; choose one of {', '.join(CORRECTIONS)}")
        if self.residual is not None and self.residual not in RESIDUALS:
            raise ValueError(f"unknown residual {self.residual!r}; choose one of {', '.join(RESIDUALS)}")
        if self.reach is not None and self.reach < 1:
            raise ValueError(f"reach must be at least 1, not {self.reach}")
        for step, factor in enumerate(self.fade):
            if not 0.0 <= factor <= 1.0:
                raise ValueError(f"fade must lie in 0..1, not {factor} (step {step})")
        if any(later <= earlier for earlier, later in pairwise((-1, *self.correction_steps))):
            raise ValueError(f"correction_steps must rise from at least 0, not {self.correction_steps}")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0, not {self.tolerance}")
        if self.max_cloud_calls is not None and self.max_cloud_calls < 0:
            raise ValueError(f"max_cloud_calls must not be negative, not {self.max_cloud_calls}")
        if self.agreement is not None and not self.shadow:
            raise ValueError("a handoff by agreement needs the shadow: leave --no-shadow out")
