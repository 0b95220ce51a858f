import math

import numpy as np
import pytest
import torch

from bench.intervals import kernel_distance, mean_interval, quantile_interval, ratio_interval, share_interval


def test_share_interval_holds_the_share_and_stays_in_range() -> None:
    low, high = share_interval(30, 40)
    assert low < 0.75 < high
    assert (low, high) == pytest.approx((0.5981, 0.8581), abs=5e-4)  # Wilson's, by hand
    assert share_interval(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert share_interval(10, 10)[1] == pytest.approx(1.0)
    assert share_interval(300, 400)[1] - share_interval(300, 400)[0] < high - low


def test_mean_interval_is_that_of_a_normal_mean_for_many_values() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=900).tolist()

    low, high = mean_interval(values)

    reach = 1.96 * float(np.std(values)) / math.sqrt(900)
    assert (low, high) == pytest.approx((np.mean(values) - reach, np.mean(values) + reach), abs=0.02)
    assert mean_interval(values) == (low, high)  # the same draws each time
    assert mean_interval([0.25]) == (0.25, 0.25)


def test_ratio_interval_draws_pairs() -> None:
    below = np.random.default_rng(2).uniform(0.1, 10.0, size=40)

    assert ratio_interval((0.5 * below).tolist(), below.tolist()) == pytest.approx((0.5, 0.5))
    low, high = ratio_interval(below[::-1].tolist(), below.tolist())
    assert low < 1.0 < high


def test_quantile_interval_holds_the_quantile_and_ends_at_the_last_value() -> None:
    values = np.linspace(0.0, 1.0, 401).tolist()

    low, high = quantile_interval(values, 0.5)
    # Of uniform values a median scatters by 1 / (2 sqrt(n)).
    assert (low, high) == pytest.approx((0.5 - 1.96 / (2 * 20), 0.5 + 1.96 / (2 * 20)), abs=0.01)
    assert quantile_interval([1.0, 2.0, 3.0, 9.0], 0.95)[1] == 9.0
    assert quantile_interval([0.25], 0.95) == (0.25, 0.25)


def test_kernel_distance_is_zero_on_average_for_one_distribution_and_grows_with_the_shift() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(400, 8, generator=random, dtype=torch.float64) for _ in range(2))
    same, scatter = kernel_distance(first, second)
    assert abs(same) < 3 * scatter
    shifted = [kernel_distance(first, second + shift)[0] for shift in (0.5, 1.0)]
    assert same < shifted[0] < shifted[1]
    assert shifted[1] > 10 * scatter


def test_kernel_distance_takes_sets_smaller_than_a_subset() -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert kernel_distance(features, features + 5)[0] > 0
