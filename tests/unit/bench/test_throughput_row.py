"""What a load on the service comes to, from its slices."""

import pytest

from bench.throughput.load import Load
from bench.throughput.row import Row, Slice


def a_slice(*, evaluations: float, raw: float, raw_alone: float = 20.0, passes: float = 10.0) -> Slice:
    return Slice(seconds=2.0, evaluations=evaluations, passes=passes, batched=evaluations, raw_alone=raw_alone, raw=raw)


def a_row(*slices: Slice) -> Row:
    return Row(mode="ecdiff", num_sessions=16, slices=list(slices), load=Load())


def test_a_machine_that_slows_down_changes_no_share():
    steady = a_row(a_slice(evaluations=90, raw=50.0), a_slice(evaluations=90, raw=50.0))
    slowing = a_row(a_slice(evaluations=90, raw=50.0), a_slice(evaluations=45, raw=25.0, raw_alone=10.0))
    assert steady.share_of_raw == pytest.approx(0.9)
    assert slowing.share_of_raw == pytest.approx(0.9)
    assert slowing.relative_rate == pytest.approx(steady.relative_rate)
    assert slowing.raw_gain == pytest.approx(2.5)


def test_rate_and_batch_are_of_all_slices_together():
    row = a_row(a_slice(evaluations=100, raw=50.0, passes=10), a_slice(evaluations=20, raw=50.0, passes=5))
    assert row.evaluations_per_second == pytest.approx(30.0)
    assert row.mean_batch == pytest.approx(8.0)


def test_the_interval_holds_the_share_and_widens_with_its_slices():
    alike = a_row(*[a_slice(evaluations=90, raw=50.0)] * 4)
    unlike = a_row(*[a_slice(evaluations=evaluations, raw=50.0) for evaluations in (70, 90, 90, 110)])
    assert alike.share_of_raw_interval == pytest.approx((0.9, 0.9))
    low, high = unlike.share_of_raw_interval
    assert low < unlike.share_of_raw < high
