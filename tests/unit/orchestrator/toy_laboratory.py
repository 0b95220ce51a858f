"""A pair whose errors are a formula, so that a search's best plan is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.search.candidate import Candidate

NUM_STEPS = 20
PROMPTS = 4
# The residual helps the edge, and some predictors are better than others.
_ORDER = {"linear": 1.0, "quadratic": 0.8}


class ToyLaboratory:
    """A step costs its distance to the last call, more so on the edge; the last steps cost most.

    Args:
        bias: What the screen is off by, as a factor.
        broken: Candidates with that many calls give no pictures.
    """

    def __init__(self, bias: float = 0.8, broken: int | None = None) -> None:
        self.bias = bias
        self.broken = broken
        self.num_runs = 0
        self.num_probes = 0

    def record(self) -> list[list[float]]:
        return [[0.1 * (prompt + 1)] * NUM_STEPS for prompt in range(PROMPTS)]

    def run(self, candidate: Candidate) -> list[float]:
        self.num_runs += 1
        if candidate.cloud_calls == self.broken:
            return [math.inf] * PROMPTS
        return [error_of(candidate) * (0.4 + 0.4 * prompt / (PROMPTS - 1) * 3) for prompt in range(PROMPTS)]

    def responses(self, probes: Sequence[Candidate]) -> list[float]:
        self.num_probes += len(probes)
        return [0.0]

    def screen(self, responses: Sequence[float]) -> ToyScreen:
        return ToyScreen(self.bias)


class ToyScreen:
    def __init__(self, bias: float) -> None:
        self._bias = bias

    def error(self, candidate: Candidate) -> float:
        return self._bias * error_of(candidate)

    def fade(self, candidate: Candidate) -> tuple[float, ...]:
        return () if candidate.residual is None else (0.5,) * NUM_STEPS


def error_of(candidate: Candidate) -> float:
    """Return the mean error."""
    total, last = 0.0, 0
    for step in range(NUM_STEPS):
        leads = step >= candidate.handoff_step
        if step in (candidate.correction_steps if leads else candidate.real_steps):
            last = step
            continue
        weight = 1.2 if leads else _ORDER.get(candidate.predictor, 1.5)
        total += 2e-4 * weight * (step - last) ** 2 * (1.0 + step / NUM_STEPS)
    return total


class Silent:
    def begin(self, phase: str, total: int) -> None: ...
    def advance(self) -> None: ...
