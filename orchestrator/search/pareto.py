"""What closed-loop errors say: intervals, ranks, and which plans are worth keeping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import correlation, fmean

from orchestrator.search.candidate import Candidate

_RESAMPLES = 2000
# A plan must be better than a cheaper one by more than chance; 16 prompts do not tell less apart.
_SLACK = 1.1


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A candidate that was run on real models.

    Attributes:
        candidate: With its fade.
        screened: What the screen had guessed.
        errors: Relative L2 of the final latents to all-cloud, one a search prompt.
    """

    candidate: Candidate
    screened: float
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """Mean over the prompts."""
        return fmean(self.errors)


def bootstrap_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron 1979); the same one for the same values."""
    random = Random(0)
    means = sorted(fmean(random.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    outside = round((1 - confidence) / 2 * _RESAMPLES)
    return means[outside], means[-1 - outside]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's correlation; None where there is nothing to rank."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value; equal ones share theirs."""
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def kept_cloud_only(confirmed: Sequence[Confirmed], max_error: float) -> list[Confirmed]:
    """Return the plans without a handoff that no other with as few calls betters, by rising calls."""
    kept: list[Confirmed] = []
    for each in sorted(confirmed, key=lambda each: (each.candidate.cloud_calls, each.error)):
        if each.error <= min([max_error, *(other.error / _SLACK for other in kept)]):
            kept.append(each)
    return kept


def kept_hybrids(confirmed: Sequence[Confirmed], max_error: float) -> list[Confirmed]:
    """Return the plans with a handoff that none with as few calls and corrections betters, by rising calls."""
    kept: list[Confirmed] = []
    order = sorted(
        confirmed,
        key=lambda each: (each.candidate.cloud_calls, len(each.candidate.correction_steps), each.error),
    )
    for each in order:
        corrections = len(each.candidate.correction_steps)
        rivals = [other.error for other in kept if len(other.candidate.correction_steps) <= corrections]
        if each.error <= min([max_error, *(error / _SLACK for error in rivals)]):
            kept.append(each)
    return kept


def earliest_under(confirmed: Sequence[Confirmed], max_error: float) -> dict[int, Confirmed]:
    """Return for each number of calls the plan that hands off earliest under an error."""
    earliest: dict[int, Confirmed] = {}
    for each in confirmed:
        calls = each.candidate.cloud_calls
        if each.error <= max_error and (
            calls not in earliest or each.candidate.handoff_step < earliest[calls].candidate.handoff_step
        ):
            earliest[calls] = each
    return dict(sorted(earliest.items()))


def is_finite(errors: Sequence[float]) -> bool:
    """Whether a candidate gave pictures at all."""
    return all(math.isfinite(each) for each in errors)
