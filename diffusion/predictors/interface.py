from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Predictor(Protocol):
    """Extrapolates the (guided) prediction from earlier real ones.

    One object serves one trajectory, is made for its schedule and keeps a fixed number of tensors, however many it
    observes. Nothing extrapolated enters it, so an error at an extrapolated step does not feed on itself; `EcDiff`, as
    published, is the exception. `predict` changes nothing, so it can be asked at a real step too, to measure its error.

    Tensors have one shape, `[B, C, H, W]` or any other, and are float32 of the type that the scheduler consumes; the
    latents are x at the same step in scheduler scaling, any float dtype. Step indices rise from call to call. An
    observed tensor is never written to.

    A rule of a higher order runs at the order that its observations allow until it has enough of them: every
    predictor can extrapolate after the shortest warm-up that a plan may have (2).
    """

    @property
    def min_observations(self) -> int:
        """Real predictions needed before `predict`: 1 or 2."""

    def observe(self, step_index: int, real: Tensor, latents: Tensor) -> None:
        """Take the real prediction made at `step_index` on `latents`."""

    def predict(self, step_index: int, latents: Tensor) -> Tensor:
        """Return the extrapolated prediction at `latents` for a step after the last observed one.

        Raises:
            ValueError: Before `min_observations`.
        """


def too_early(needed: int) -> ValueError:
    """Return the error of a `predict` that comes before `needed` observations."""
    return ValueError(f"the predictor needs {needed} real predictions before it can extrapolate")
