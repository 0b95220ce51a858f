"""Link estimate: round trip, clock offset, bandwidth."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.link import LinkEstimate, ProbeSample


def probe(sent: float, up: float, down: float, offset: float, server: float = 0.0) -> ProbeSample:
    """A probe over a path with these one-way times, to a server whose clock is `offset` ahead."""
    received = sent + up
    return ProbeSample(t0=sent, t1=received + offset, t2=received + server + offset, t3=received + server + down)


def test_round_trip_leaves_the_servers_own_time_out() -> None:
    assert probe(100.0, 0.03, 0.05, offset=-7.0, server=0.4).rtt_seconds == pytest.approx(0.08)


def test_offset_of_a_symmetric_path_is_exact_for_a_wrong_clock() -> None:
    link = LinkEstimate()
    link.add_probe(probe(1e9, 0.02, 0.02, offset=-3600.0))
    assert link.clock_offset_seconds == pytest.approx(-3600.0, abs=1e-6)
    assert link.clock_offset_uncertainty_seconds == pytest.approx(0.02, abs=1e-6)


def test_true_offset_lies_within_the_uncertainty_on_any_path() -> None:
    generator = random.Random(5)
    for _ in range(200):
        link, offset = LinkEstimate(), generator.uniform(-100, 100)
        for k in range(8):
            link.add_probe(probe(1000.0 + k, generator.expovariate(20), generator.expovariate(50), offset))
        assert abs(link.clock_offset_seconds - offset) <= link.clock_offset_uncertainty_seconds + 1e-9


def test_offset_comes_from_the_fastest_recent_probe_only() -> None:
    link = LinkEstimate(num_offset_samples=2)
    link.add_probe(probe(0.0, 0.001, 0.001, offset=5.0))
    link.add_probe(probe(1.0, 0.01, 0.01, offset=6.0))
    link.add_probe(probe(2.0, 0.02, 0.3, offset=6.0))
    assert link.clock_offset_seconds == pytest.approx(6.0)


def test_one_way_time_is_corrected_and_never_negative() -> None:
    link = LinkEstimate()
    link.add_probe(probe(0.0, 0.05, 0.05, offset=1000.0))
    assert link.one_way_seconds(sent_at=1010.0, received_at=10.3) == pytest.approx(0.3)
    assert link.one_way_seconds(sent_at=1020.0, received_at=10.3) == 0.0


def test_quantiles_are_of_the_samples() -> None:
    link = LinkEstimate()
    for k in range(100):
        link.add_probe(probe(k, 0.0, k / 1000, offset=0.0))
    assert link.rtt_quantile_seconds(0.0) == pytest.approx(0.0)
    assert link.rtt_quantile_seconds(0.5) == pytest.approx(0.049)
    assert link.rtt_quantile_seconds(0.95) == pytest.approx(0.094)


def test_nothing_is_claimed_before_the_first_probe() -> None:
    link = LinkEstimate()
    assert link.rtt_quantile_seconds(0.5) == 0.0
    assert math.isinf(link.clock_offset_uncertainty_seconds)
    assert link.bandwidth_bytes_per_second is None


def test_each_round_trip_is_handed_to_the_histogram_once() -> None:
    link = LinkEstimate()
    link.add_probe(probe(0.0, 0.1, 0.1, offset=0.0))
    assert link.take_new_rtts() == pytest.approx([0.2])
    assert link.take_new_rtts() == []


def test_bandwidth_moves_half_way_to_each_new_transfer() -> None:
    link = LinkEstimate()
    link.add_transfer(1000, 1.0)
    link.add_transfer(3000, 1.0)
    assert link.bandwidth_bytes_per_second == pytest.approx(2000.0)
