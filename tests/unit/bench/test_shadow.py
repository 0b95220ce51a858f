"""What bench.shadow makes of its runs."""

from __future__ import annotations

import pytest

from bench.shadow import MEASURES, _summary


def runs(with_shadow: float, without: float, count: int = 6) -> list[dict[str, dict[str, float]]]:
    return [
        {"with": dict.fromkeys(MEASURES, with_shadow + i / 100), "without": dict.fromkeys(MEASURES, without + i / 100)}
        for i in range(count)
    ]


def test_ratio_is_of_the_means_and_lies_within_its_interval() -> None:
    found = _summary(runs(2.0, 1.0))
    assert set(found) == set(MEASURES)
    low, high = found["cloud"]["ratio_interval"]
    assert found["cloud"]["ratio"] == pytest.approx(2.025 / 1.025)
    assert low <= found["cloud"]["ratio"] <= high


def test_a_shadow_that_costs_nothing_has_ratio_one() -> None:
    assert _summary(runs(1.0, 1.0))["to the handoff"]["ratio"] == 1.0
