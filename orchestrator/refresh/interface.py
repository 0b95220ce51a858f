from __future__ import annotations

from typing import Protocol

from wire.messages import Source


class RefreshPolicy(Protocol):
    """Decides for one generation."""

    @property
    def measure(self) -> str | None:
        """Name of the number that `decide` wants, a key of `diffusion.measures.MEASURES`; None for none."""

    def foresee(self, step_index: int) -> Source | None:
        """Return the source of a step as far as the plan alone decides it; None where it is decided at run time."""

    def decide(self, step_index: int, measured: float | None = None) -> Source:
        """Return `Source.CLOUD` to evaluate at this step, `Source.EXTRAPOLATED` to extrapolate.

        Called once for each step of the cloud's part, in order.

        Args:
            step_index: The step that is about to be run.
            measured: `measure` at this step; None where it cannot be told yet.
        """
