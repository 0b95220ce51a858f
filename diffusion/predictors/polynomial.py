"""Rules that draw a polynomial through the last few real predictions, in the scheduler's terms or in others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.prediction_types import convert_prediction
from diffusion.predictors.interface import Predictor, too_early
from diffusion.schedule import Schedule


class Polynomial:
    """Newton's interpolation polynomial through the last `degree + 1` real predictions.

    Exact on predictions that are a polynomial of that degree in the coordinate, however uneven the steps, from
    `degree + 1` observations on; before that, of the degree that they determine. Needs min(degree + 1, 2) observations.

    What it says is at most the largest of those real predictions times the sum of the absolute Lagrange weights, which
    grows with the gap to the power of the degree: a high degree wants short gaps and a network that is smooth in time.

    Args:
        coordinates: Where each step lies, such as its timestep; strictly monotonic. The first may be infinite: a
            line from there is flat.
        degree: 0 reuses the last one, 1 is a line, 2 a parabola.
    """

    def __init__(self, coordinates: Sequence[float], degree: int) -> None:
        self.min_observations = min(degree + 1, 2)
        self._coordinates = coordinates
        self._degree = degree
        # Newest first; _differences[k] is the divided difference of order k over the newest k + 1 nodes.
        self._nodes: list[float] = []
        self._differences: list[Tensor] = []

    def observe(self, step_index: int, real: Tensor, latents: Tensor) -> None:
        """Take the real prediction made at `step_index` and update the divided differences."""
        coordinate = self._coordinates[step_index]
        differences = [real]
        for node, earlier in list(zip(self._nodes, self._differences, strict=True))[: self._degree]:
            differences.append((differences[-1] - earlier) / (coordinate - node))
        self._nodes = [coordinate, *self._nodes[: self._degree]]
        self._differences = differences

    def predict(self, step_index: int, latents: Tensor) -> Tensor:
        """Return the polynomial's value at the step's coordinate."""
        if len(self._differences) < self.min_observations:
            raise too_early(self.min_observations)
        coordinate = self._coordinates[step_index]
        value = self._differences[-1]
        # Horner's scheme in Newton's form.
        for node, difference in zip(self._nodes[-2::-1], self._differences[-2::-1], strict=True):
            value = torch.add(difference, value, alpha=coordinate - node)
        return value


class Converted:
    """A rule applied to the prediction in other terms; its answer is said in the scheduler's at the current latents.

    The latents move between real steps, so what is smooth in x0 or in epsilon is not so in v, and the reverse. Exact on
    what the rule is exact on, in terms of `extrapolated`; the rule itself when the scheduler consumes that type.

    Args:
        rule: Sees predictions of type `extrapolated`.
        schedule: Signal and noise of each step.
        consumed: Prediction type that the scheduler consumes.
        extrapolated: Prediction type to extrapolate.

    Raises:
        ValueError: If the types cannot be converted into each other at some step: no noise there, or no signal after
            step 0. (Step 0 is never extrapolated, and from v or x0 everything follows even without signal.)
    """

    def __init__(self, rule: Predictor, schedule: Schedule, *, consumed: str, extrapolated: str) -> None:
        if 0.0 in schedule.alphas[1:] or 0.0 in schedule.sigmas[:-1]:
            raise ValueError(f"{extrapolated} cannot be extrapolated on a schedule with a step without signal or noise")
        self.min_observations = rule.min_observations
        self._rule = rule
        self._schedule = schedule
        self._consumed = consumed
        self._extrapolated = extrapolated

    def observe(self, step_index: int, real: Tensor, latents: Tensor) -> None:
        """Take the real prediction made at `step_index` on `latents`."""
        converted = self._convert(real, latents, self._consumed, self._extrapolated, step_index)
        self._rule.observe(step_index, converted, latents)

    def predict(self, step_index: int, latents: Tensor) -> Tensor:
        """Return the rule's answer in the scheduler's terms at `latents`."""
        predicted = self._rule.predict(step_index, latents)
        return self._convert(predicted, latents, self._extrapolated, self._consumed, step_index)

    def _convert(self, prediction: Tensor, latents: Tensor, source: str, target: str, step_index: int) -> Tensor:
        alpha, sigma = self._schedule.alphas[step_index], self._schedule.sigmas[step_index]
        return convert_prediction(prediction, latents, source=source, target=target, alpha=alpha, sigma=sigma)


def epsilon_linear(schedule: Schedule, prediction_type: str) -> Predictor:
    """Return a line in the timestep through the last two epsilon (EC-Diff's noise), whatever the scheduler consumes.

    Exact on epsilon linear in the timestep. For an epsilon model it is `linear`.
    """
    rule = Polynomial(schedule.timesteps, 1)
    return Converted(rule, schedule, consumed=prediction_type, extrapolated="epsilon")


def x0_linear(schedule: Schedule, prediction_type: str) -> Predictor:
    """Return a line through the last two x0 over lambda = log(alpha / sigma), as DPM-Solver++ 2M draws it.

    Exact on x0 linear in lambda (arXiv 2211.01095, section 4). At zero terminal SNR lambda is -inf at step 0 and no
    line starts there: until two later steps are observed, x0 is reused.
    """
    log_snrs = [
        math.log(alpha / sigma) if alpha and sigma else -math.inf
        for alpha, sigma in zip(schedule.alphas, schedule.sigmas[:-1], strict=True)
    ]
    return Converted(Polynomial(log_snrs, 1), schedule, consumed=prediction_type, extrapolated="sample")
