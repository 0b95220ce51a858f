"""Rules that draw on every real prediction so far, through running sums."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffusion.predictors.interface import too_early
from diffusion.predictors.polynomial import Polynomial
from diffusion.schedule import Schedule

_DEGREE = 4


class Chebyshev:
    """Ridge fit of the Chebyshev polynomials T0..T4 over all real predictions, blended with the line of the last two.

    Spectrum's forecaster (arXiv 2603.01623), with the regularisation and the blend that its authors' public code
    recommends. Here the fit is of the distance to the last real prediction: so the ridge pulls towards reusing that one
    and not towards zero, and the rule is exact on constants. With `ridge` 0 and `weight` 1 it would be exact on
    polynomials of degree 4 from 5 observations on.

    The normal equations need sums only, not the history: with u_j the timestep of a real prediction p_j, mapped to
    -1..1, they are sum T(u_j) T(u_j)^T, sum T(u_j) and the five tensors sum T_k(u_j) p_j. Needs 2 observations.

    Args:
        schedule: Timesteps of the trajectory.
        ridge: Added to the diagonal of the normal equations; positive.
        weight: Share of the fit; the rest is the line's.
    """

    min_observations: ClassVar[int] = 2

    def __init__(self, schedule: Schedule, *, ridge: float = 0.1, weight: float = 0.5) -> None:
        timesteps = np.array(schedule.timesteps)
        # One step alone has no span; it is never extrapolated.
        span = max(timesteps[0] - timesteps[-1], 1.0)
        # Row i: T0..T4 at step i.
        self._basis = np.polynomial.chebyshev.chebvander(1.0 - 2.0 * (timesteps - timesteps[-1]) / span, _DEGREE)
        self._weight = weight
        self._gram = ridge * np.eye(_DEGREE + 1)
        self._sums = np.zeros(_DEGREE + 1)
        self._moments: list[Tensor] = []
        self._last: Tensor
        self._line = Polynomial(schedule.timesteps, 1)

    def observe(self, step_index: int, real: Tensor, latents: Tensor) -> None:
        """Take the real prediction made at `step_index` and update the sums."""
        row = self._basis[step_index]
        self._gram += np.outer(row, row)
        self._sums += row
        if not self._moments:
            self._moments = [torch.zeros_like(real) for _ in row]
        for moment, value in zip(self._moments, row.tolist(), strict=True):
            moment.add_(real, alpha=value)
        self._last = real
        self._line.observe(step_index, real, latents)

    def predict(self, step_index: int, latents: Tensor) -> Tensor:
        """Return the blend of fit and line at the step's timestep."""
        line = self._line.predict(step_index, latents)
        # The fit at this step is sum w_k * (moment_k - sums_k * last) + last.
        weights = self._weight * np.linalg.solve(self._gram, self._basis[step_index])
        predicted = (1.0 - self._weight) * line
        predicted.add_(self._last, alpha=self._weight - float(weights @ self._sums))
        for moment, value in zip(self._moments, weights.tolist(), strict=True):
            predicted.add_(moment, alpha=value)
        return predicted


class Trend:
    """The last real prediction plus an averaged slope (ETC, arXiv 2510.24129, EC-Diff's successor).

    Each real prediction gives a slope: its distance to the real one before, divided by the gap between them, here in
    timesteps. The trend is their exponential moving average, so all of the history is in it. Exact on lines in the
    timestep, at uneven steps too; slower than `linear` where the slope changes, calmer where it is noise. Needs 2
    observations.

    Args:
        schedule: Timesteps of the trajectory.
        weight: Share of the newest slope in the average, in (0, 1].
    """

    min_observations: ClassVar[int] = 2

    def __init__(self, schedule: Schedule, *, weight: float = 0.5) -> None:
        self._timesteps = schedule.timesteps
        self._weight = weight
        self._last: Tensor | None = None
        self._last_timestep = 0.0
        self._trend: Tensor | None = None

    def observe(self, step_index: int, real: Tensor, latents: Tensor) -> None:
        """Take the real prediction made at `step_index` and update the trend."""
        timestep = self._timesteps[step_index]
        if self._last is not None:
            slope = (real - self._last) / (timestep - self._last_timestep)
            self._trend = slope if self._trend is None else torch.lerp(self._trend, slope, self._weight)
        self._last, self._last_timestep = real, timestep

    def predict(self, step_index: int, latents: Tensor) -> Tensor:
        """Return last real + trend * (timesteps since)."""
        if self._last is None or self._trend is None:
            raise too_early(self.min_observations)
        return torch.add(self._last, self._trend, alpha=self._timesteps[step_index] - self._last_timestep)
