"""The edge model, corrected by what the cloud model was seen to say otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.predictors import Predictor


class Residual:
    """How far the edge's prediction is from the cloud's, and from it a better one without asking the cloud.

    Where both models were asked at the same latents, r = cloud - edge is known. Elsewhere the prediction is
    edge(x) + fade_i * r~, with r~ extrapolated from the known r. The small model follows the picture at the latents of
    now, which no extrapolation does; what it always gets wrong changes slowly from step to step, and is what r says.

    One object serves one trajectory. Tensors are `[B, C, H, W]` or of any other one shape, float32, guided, of the
    type that the scheduler consumes. Exact wherever r is what the predictor is exact on.

    Args:
        predictor: Fresh; extrapolates r. Until it has seen enough, the last r is used as it is.
        fade: Factor of r~ at each step of the trajectory; None: 1 everywhere.
        reach: Steps after the last observation for which r~ is taken at that value; over as many again it goes to 0,
            since an extrapolation that nothing corrects grows without bound. None: for ever.
    """

    def __init__(self, predictor: Predictor, fade: Sequence[float] | None = None, *, reach: int | None = None) -> None:
        self._predictor = predictor
        self._fade = fade
        self._reach = reach
        self._last: Tensor | None = None
        self._last_step = 0
        self._num_observations = 0

    def observe(self, step_index: int, cloud: Tensor, edge: Tensor, latents: Tensor) -> None:
        """Take both predictions made at `step_index` on `latents`; indices rise from call to call."""
        self._last, self._last_step = cloud - edge, step_index
        self._predictor.observe(step_index, self._last, latents)
        self._num_observations += 1

    def predict(self, step_index: int, latents: Tensor) -> Tensor | None:
        """Return r~ at a step after the last observed one, not faded; None before the first observation."""
        if self._num_observations < self._predictor.min_observations:
            return self._last
        return self._predictor.predict(step_index, latents)

    def correct(self, step_index: int, edge: Tensor, latents: Tensor) -> Tensor:
        """Return the edge's prediction plus the faded residual; the edge's own before the first observation."""
        trust = self._trust(step_index)
        residual = self.predict(step_index, latents) if trust > 0.0 else None
        return edge if residual is None else torch.add(edge, residual, alpha=trust)

    def _trust(self, step_index: int) -> float:
        """Return the factor of r~ at a step: the fade, less what is beyond the reach."""
        fade = 1.0 if self._fade is None else self._fade[step_index]
        if self._reach is None:
            return fade
        beyond = (step_index - self._last_step - self._reach) / self._reach
        return fade * min(1.0, max(0.0, 1.0 - beyond))
