from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from diffusion.predictors.interface import too_early


class EcDiff:
    """EC-Diff's noise gradient (arXiv 2507.11980), as its authors' public code computes it.

    Between real predictions, eps_i = eps_{i-1} + G. While every step is real (the warm-up), G is the plain
    difference of the last two predictions. At each real step after extrapolated ones,
    G = smoothing * (eps_i - the prediction used at i-1), and that one was extrapolated:
    the gradient contains the extrapolation error, which is why it has to be smoothed. Exact on constants; bounded only
    while smoothing * skip_interval < 1.

    Here eps_i is written as last real + (steps since) * G, equal up to rounding, so that `predict` needs no record of
    what was used. Needs 2 observations.

    Args:
        smoothing: a of the paper, not negative.
    """

    min_observations: ClassVar[int] = 2

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._last: Tensor | None = None
        self._last_index = 0
        self._gradient: Tensor | None = None
        self._extrapolated = False

    def observe(self, step_index: int, real: Tensor, latents: Tensor) -> None:
        """Take the real prediction made at `step_index` and update the gradient."""
        if self._last is not None:
            gap = step_index - self._last_index
            self._extrapolated |= gap > 1
            used = self._last if gap == 1 else self.predict(step_index - 1, latents)
            self._gradient = real - used
            if self._extrapolated:
                self._gradient *= self._smoothing
        self._last, self._last_index = real, step_index

    def predict(self, step_index: int, latents: Tensor) -> Tensor:
        """Return last real + (steps since) * gradient."""
        if self._last is None or self._gradient is None:
            raise too_early(self.min_observations)
        return torch.add(self._last, self._gradient, alpha=step_index - self._last_index)
