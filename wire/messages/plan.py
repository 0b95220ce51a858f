"""What the cloud does with each step; `wire.edge_plan` is what the edge does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

# A gradient needs two real predictions.
MIN_WARMUP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the cloud does with each step before the handoff.

    Attributes:
        num_inference_steps: Steps of the whole trajectory, cloud and edge together.
        handoff_step: First step that the edge model runs, 0-based; `num_inference_steps` means never.
        refresh: Name of the refresh policy, which says what the next fields mean (`orchestrator.refresh`).
        warmup_steps: Real evaluations at the start (p of EC-Diff).
        skip_interval: Extrapolated steps between two real ones (k of EC-Diff): so many with `fixed`, at most
            so many with a policy that adapts or grows.
        predictor: Name of the predictor, of those that the cloud's description lists.
        smoothing: a of EC-Diff; predictor `ecdiff` only.
        tolerance: What a policy that adapts lets its measure reach; 0 makes every step real.
        final_steps: How many of `num_inference_steps` at the end are never extrapolated; behind a handoff they
            are the edge's.
        real_steps: `listed` only: the steps to evaluate, rising. Those from the handoff step on are not run.
        max_cloud_calls: Hard bound on real evaluations up to the handoff; None for none.
    """

    num_inference_steps: int
    handoff_step: int
    refresh: str = "always"
    warmup_steps: int = 2
    skip_interval: int = 0
    predictor: str = "reuse"
    smoothing: float = 0.0
    tolerance: float = 0.0
    final_steps: int = 0
    real_steps: tuple[int, ...] = ()
    max_cloud_calls: int | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {self.num_inference_steps}")
        if not 0 <= self.handoff_step <= self.num_inference_steps:
            raise ValueError(
                f"handoff_step must lie in 0..{self.num_inference_steps} "
                f"(the step count means never), not {self.handoff_step}"
            )
        if self.warmup_steps < MIN_WARMUP_STEPS:
            raise ValueError(
                f"warmup_steps must be at least {MIN_WARMUP_STEPS} (a gradient needs two), not {self.warmup_steps}"
            )
        for name in ("skip_interval", "final_steps", "max_cloud_calls"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0.0 <= self.smoothing <= 10.0:
            raise ValueError(f"smoothing must lie in 0..10, not {self.smoothing}")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0, not {self.tolerance}")
        self._check_real_steps()

    def _check_real_steps(self) -> None:
        if any(later <= earlier for earlier, later in pairwise(self.real_steps)):
            raise ValueError("real_steps must rise from step to step")
        for step in self.real_steps[:1] + self.real_steps[-1:]:
            if not 0 <= step < self.num_inference_steps:
                raise ValueError(f"real_steps must lie in 0..{self.num_inference_steps - 1}, not {step}")
