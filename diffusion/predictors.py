"""Predict the prediction: what the network would have said at a step where it is not asked.

One object serves one trajectory and keeps only the tensors that its rule needs. `predict` changes
nothing, so it can be asked at a real step too, to measure its error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Predictor(Protocol):
    """Extrapolates the (guided) prediction from earlier real ones.

    Tensors are `[B, C, H, W]`, float32, of the type that the scheduler consumes. Step indices
    rise from call to call, timesteps fall.
    """

    min_observations: ClassVar[int]
    """Real predictions needed before `predict`."""

    def observe(self, step_index: int, timestep: float, real: Tensor) -> None:
        """Take the real prediction made at `step_index`."""

    def predict(self, step_index: int, timestep: float) -> Tensor:
        """Return the extrapolated prediction for a step after the last observed one.

        Raises:
            ValueError: Before `min_observations`.
        """


def _too_early(name: str, needed: int) -> ValueError:
    return ValueError(f"predictor {name} needs {needed} real predictions before it can extrapolate")


class Reuse:
    """The last real prediction again; exact on constants."""

    min_observations: ClassVar[int] = 1

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def observe(self, step_index: int, timestep: float, real: Tensor) -> None:
        """Take the real prediction made at `step_index`."""
        self._last = real

    def predict(self, step_index: int, timestep: float) -> Tensor:
        """Return the last real prediction."""
        if self._last is None:
            raise _too_early("reuse", self.min_observations)
        return self._last


class EcDiff:
    """EC-Diff's noise gradient (arXiv 2507.11980), as its authors' public code computes it.

    Between real predictions, eps_i = eps_{i-1} + G. While every step is real (the warm-up), G is the plain
    difference of the last two predictions. At each real step after extrapolated ones,
    G = smoothing * (eps_i - the prediction used at i-1), and that one was extrapolated:
    the gradient contains the extrapolation error, which is why it has to be smoothed. Exact on constants.

    Here eps_i is written as last real + (steps since) * G, equal up to rounding, so that `predict` needs no record of
    what was used.

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

    def observe(self, step_index: int, timestep: float, real: Tensor) -> None:
        """Take the real prediction made at `step_index` and update the gradient."""
        if self._last is not None:
            gap = step_index - self._last_index
            self._extrapolated |= gap > 1
            used = self._last if gap == 1 else self.predict(step_index - 1, timestep)
            self._gradient = real - used
            if self._extrapolated:
                self._gradient *= self._smoothing
        self._last, self._last_index = real, step_index

    def predict(self, step_index: int, timestep: float) -> Tensor:
        """Return last real + (steps since) * gradient."""
        if self._last is None or self._gradient is None:
            raise _too_early("ecdiff", self.min_observations)
        return torch.add(self._last, self._gradient, alpha=step_index - self._last_index)


class Linear:
    """Newton's divided difference of the last two real predictions, in the timestep.

    Exact on predictions that are linear in the timestep, however uneven the steps; nothing
    extrapolated enters the slope, so nothing has to be smoothed.
    """

    min_observations: ClassVar[int] = 2

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._last_timestep = 0.0
        self._slope: Tensor | None = None

    def observe(self, step_index: int, timestep: float, real: Tensor) -> None:
        """Take the real prediction made at `step_index` and update the slope."""
        if self._last is not None:
            self._slope = (real - self._last) / (timestep - self._last_timestep)
        self._last, self._last_timestep = real, timestep

    def predict(self, step_index: int, timestep: float) -> Tensor:
        """Return the line through the last two real predictions at `timestep`."""
        if self._last is None or self._slope is None:
            raise _too_early("linear", self.min_observations)
        return torch.add(self._last, self._slope, alpha=timestep - self._last_timestep)


PREDICTORS: dict[str, Callable[[float], Predictor]] = {
    "reuse": lambda smoothing: Reuse(),
    "ecdiff": EcDiff,
    "linear": lambda smoothing: Linear(),
}
"""Name in a plan -> factory that is given the plan's smoothing."""


def make_predictor(name: str, *, smoothing: float = 0.0) -> Predictor:
    """Return a fresh predictor for one trajectory.

    Args:
        name: A key of `PREDICTORS`.
        smoothing: a of EC-Diff; `ecdiff` only.

    Raises:
        ValueError: If there is no such predictor.
    """
    if name not in PREDICTORS:
        raise ValueError(f"unknown predictor {name[:80]!r}; known: {', '.join(PREDICTORS)}")
    return PREDICTORS[name](smoothing)
