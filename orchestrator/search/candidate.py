"""What the search proposes, and what it asks of a proposal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to spend cloud calls; the fields are those of `SearchedPlan`.

    Attributes:
        real_steps: The cloud's real steps while it leads, rising, all before `handoff_step`.
        handoff_step: First step of the edge model; the step count means never.
        correction_steps: Where the edge asks the cloud, rising, all from `handoff_step` on.
        predictor: What the cloud extrapolates with.
        residual: What the edge extrapolates cloud minus edge with; None where it never leads.
        fade: Factor of that at each step; empty: 1 everywhere.
    """

    real_steps: tuple[int, ...]
    handoff_step: int
    correction_steps: tuple[int, ...] = ()
    predictor: str
    residual: str | None = None
    fade: tuple[float, ...] = ()

    @property
    def calls(self) -> tuple[int, ...]:
        """Every step that the cloud evaluates."""
        return self.real_steps + self.correction_steps

    @property
    def cloud_calls(self) -> int:
        """Evaluations in the cloud, corrections included."""
        return len(self.calls)

    def edge_steps(self, num_steps: int) -> int:
        """Steps of the edge model, those with a correction not counted."""
        return num_steps - self.handoff_step - len(self.correction_steps)


class Screen(Protocol):
    """Guesses a candidate's error without running a network."""

    def error(self, candidate: Candidate) -> float:
        """Return the guess: mean relative L2 of the final latents; the best fade is used where there is a residual."""
        ...

    def fade(self, candidate: Candidate) -> tuple[float, ...]:
        """Return that fade, one factor a step; empty without a residual."""
        ...


Evaluate = Callable[[Candidate], Sequence[float]]
"""Runs a candidate closed loop, on real models: the error of each search prompt."""


def cloud_only(calls: Sequence[int], num_steps: int, predictor: str) -> Candidate:
    """Return the candidate whose cloud never hands off."""
    return Candidate(real_steps=tuple(calls), handoff_step=num_steps, predictor=predictor)


def hybrid(calls: Sequence[int], num_real: int, predictor: str, residual: str | None) -> Candidate:
    """Return the candidate that hands off right after its `num_real`-th call, and corrects at the others."""
    return Candidate(
        real_steps=tuple(calls[:num_real]),
        handoff_step=calls[num_real - 1] + 1,
        correction_steps=tuple(calls[num_real:]),
        predictor=predictor,
        residual=residual,
    )
