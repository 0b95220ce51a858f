"""What a refresh policy wants to know of the step that is about to be run: one number, taken where the tensors are.

    measure = make_measure("embedded-error", trajectory, prediction_type=stepper.prediction_type)
    measured = measure.value()       # before each step
    measure.observe(result)          # after it

A value is taken only when asked for. It costs a few passes over the latents and no network; on a GPU it waits for the
device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffusion.sensitivity import latents_sensitivities
from diffusion.trajectory import StepResult, Trajectory


class Measure(Protocol):
    """Belongs to one trajectory."""

    def observe(self, result: StepResult) -> None:
        """Take in a step that was run."""

    def value(self) -> float | None:
        """Return the number for the trajectory's next step; None while there is too little to tell it from."""


class EmbeddedError:
    """What extrapolating the next step would put the latents off by, estimated by two predictors of different order.

    c_i * mean |P - P_companion| with c_i the step's sensitivity (`diffusion.sensitivity`), in units of latents that
    preserve variance, so that a tolerance means the same under Euler's scaling.

    Args:
        trajectory: One with a predictor and a companion.
        prediction_type: What its scheduler consumes.
    """

    def __init__(self, trajectory: Trajectory, prediction_type: str) -> None:
        self._trajectory = trajectory
        self._weights = latents_sensitivities(trajectory.schedule, prediction_type)

    def observe(self, result: StepResult) -> None:
        """Nothing to keep: the predictors have seen it."""

    def value(self) -> float | None:
        """Return the estimate; None before the third real prediction."""
        error = self._trajectory.embedded_error()
        return None if error is None else self._weights[self._trajectory.step_index] * error


class ThirdDifference:
    """How far the latents' way is from a parabola: |(d_3 + d_1) / 2 - d_2| / |d_3|, d_1..d_3 its last three steps.

    AdaptiveDiffusion's criterion (arXiv 2410.09873, section 3.3): half the third difference of the latents, relative to
    their newest first difference, L2.
    """

    def __init__(self) -> None:
        self._differences: deque[Tensor] = deque(maxlen=3)

    def observe(self, result: StepResult) -> None:
        """Keep the step's difference."""
        self._differences.append(result.latents.float() - result.latents_before.float())

    def value(self) -> float | None:
        """Return the criterion; None before the third step."""
        if len(self._differences) < 3:
            return None
        first, second, third = self._differences
        return _ratio(((first + third) / 2).sub_(second), third)


class OutputChange:
    """Relative change that the prediction must have made in the last step: K * |dx| / |v| (arXiv 2507.02860).

    EasyCache's criterion. dx is what the last step changed in the latents, v the prediction that it used. K is
    |dv| / |dx| between the last two real steps: how the network answered to its input, the paper's relative
    transformation rate. Norms are L2.
    """

    def __init__(self) -> None:
        self._real: StepResult | None = None
        self._rate: float | None = None
        self._newest: StepResult

    def observe(self, result: StepResult) -> None:
        """Keep the step; after a real one, the rate."""
        self._newest = result
        if not result.evaluated:
            return
        if self._real is not None:
            moved = result.latents_before.float() - self._real.latents_before.float()
            self._rate = _ratio(result.noise_pred - self._real.noise_pred, moved)
        self._real = result

    def value(self) -> float | None:
        """Return the estimate; None before the second real step."""
        if self._rate is None:
            return None
        newest = self._newest
        return self._rate * _ratio(newest.latents.float() - newest.latents_before.float(), newest.noise_pred)


MEASURES: dict[str, Callable[[Trajectory, str], Measure]] = {
    "embedded-error": EmbeddedError,
    "third-difference": lambda trajectory, prediction_type: ThirdDifference(),
    "output-change": lambda trajectory, prediction_type: OutputChange(),
}
"""Name that a refresh policy asks for -> factory."""


def make_measure(name: str, trajectory: Trajectory, *, prediction_type: str) -> Measure:
    """Return a fresh measure of a trajectory that has not begun.

    Args:
        name: A key of `MEASURES`.
        trajectory: With a predictor and a companion for `embedded-error`.
        prediction_type: What its scheduler consumes.
    """
    return MEASURES[name](trajectory, prediction_type)


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    """Return |numerator| / |denominator|, L2; large where the denominator is 0, 0 where both are."""
    norm = torch.linalg.vector_norm(denominator).clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.linalg.vector_norm(numerator) / norm)
