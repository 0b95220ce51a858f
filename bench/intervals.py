"""How sure a figure is: intervals for shares, and a distance between sets of pictures with its scatter."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor


def share_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share (Wilson 1927), which stays within 0..1 also for few trials."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


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
