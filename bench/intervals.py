"""How sure a figure is: intervals for shares, means and their ratios, and a distance between sets of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def share_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share (Wilson 1927), which stays within 0..1 also for few trials."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def mean_interval(values: Sequence[float], confidence: float = 0.95, num_resamples: int = 4000) -> tuple[float, float]:
    """Return the bootstrap interval of a mean (Efron 1979, percentiles), with always the same draws.

    Args:
        values: Independent ones, such as one a prompt; at least one.
        confidence: Share of the resampled means that lie within.
        num_resamples: Sets of as many values that are drawn from them.
    """
    resampled = np.asarray(values, dtype=np.float64)[_draws(len(values), num_resamples)]
    return _percentiles(resampled.mean(1), confidence)


def ratio_interval(
    above: Sequence[float], below: Sequence[float], confidence: float = 0.95, num_resamples: int = 4000
) -> tuple[float, float]:
    """Return the bootstrap interval of a ratio of two means; the values are drawn in pairs, as they were taken.

    Args:
        above: Of the numerator's mean.
        below: Of the denominator's, the same prompts in the same order; their means are positive.
        confidence: See `mean_interval`.
        num_resamples: See there.
    """
    draws = _draws(len(above), num_resamples)
    pairs = np.stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)], axis=1)
    means = pairs[draws].mean(1)
    return _percentiles(means[:, 0] / means[:, 1], confidence)


def quantile_interval(
    values: Sequence[float], quantile: float, confidence: float = 0.95, num_resamples: int = 4000
) -> tuple[float, float]:
    """Return the bootstrap interval of a quantile; of few values, a far one's ends at the last of them.

    Args:
        values: Independent ones, at least one.
        quantile: 0..1, such as 0.5 for the median.
        confidence: See `mean_interval`.
        num_resamples: See there.
    """
    resampled = np.asarray(values, dtype=np.float64)[_draws(len(values), num_resamples)]
    return _percentiles(np.quantile(resampled, quantile, axis=1), confidence)


def _draws(count: int, num_resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(num_resamples, count))


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def kernel_distance(
    first: Tensor, second: Tensor, *, subset_size: int = 100, num_subsets: int = 100
) -> tuple[float, float]:
    """Return the kernel inception distance of two sets of features, mean and deviation over random subsets.

    The unbiased squared maximum mean discrepancy under the kernel (x.y / F + 1)^3 (Binkowski et al. 2018,
    arXiv 1801.01401, section 4), so 0 on average for two draws from one distribution and possibly below it for one.
    Where a set is no larger than a subset, every subset is the whole of it and the deviation is the other set's alone.

    Args:
        first: `[N, F]`, float64.
        second: `[M, F]`, likewise.
        subset_size: Pictures of each set in a subset; the smaller set's size where that is less.
        num_subsets: Subsets drawn, always the same ones.
    """
    size = min(subset_size, len(first), len(second))
    random = torch.Generator().manual_seed(0)
    distances = torch.stack(
        [
            _squared_discrepancy(
                first[torch.randperm(len(first), generator=random)[:size]],
                second[torch.randperm(len(second), generator=random)[:size]],
            )
            for _ in range(num_subsets)
        ]
    )
    return float(distances.mean()), float(distances.std())


def _squared_discrepancy(first: Tensor, second: Tensor) -> Tensor:
    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / left.shape[1] + 1) ** 3

    def mean_off_diagonal(values: Tensor) -> Tensor:
        size = len(values)
        return (values.sum() - values.diagonal().sum()) / (size * (size - 1))

    same = mean_off_diagonal(kernel(first, first)) + mean_off_diagonal(kernel(second, second))
    return same - 2 * kernel(first, second).mean()
