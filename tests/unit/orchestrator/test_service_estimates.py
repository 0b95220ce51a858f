"""What session reports teach: robust, bounded, forgotten with time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service.estimates import (
    MAX_CALIBRATION,
    MAX_STEP_RATIO,
    NUM_KEPT,
    STEP_HALF_LIFE_SECONDS,
    DecayingMedian,
    ReplicaEstimates,
    prediction_ratio,
)
from wire.fleet_messages import SessionReport

NOW = 1_000_000.0
ELEMENTS = 1024
TOLD = 0.1 / ELEMENTS

REPORT = SessionReport(
    mode="adaptive",
    outcome="done",
    replica="a:1",
    total_seconds=2.5,
    connect_seconds=0.5,
    predicted_seconds=1.0,
    cloud_step_seconds=0.2,
    cloud_queue_seconds=0.05,
    rtt_seconds=0.04,
    bandwidth_bytes_per_second=1e6,
    latents_elements=ELEMENTS,
)


def taught(*reports: SessionReport) -> ReplicaEstimates:
    estimates = ReplicaEstimates()
    for report in reports:
        estimates.learn(report, NOW, told_step_per_element=TOLD)
    return estimates


def step_seconds(estimates: ReplicaEstimates, now_seconds: float = NOW) -> float | None:
    return estimates.step_seconds(ELEMENTS, now_seconds, told_step_per_element=TOLD)


def test_without_reports_a_replica_is_what_it_says_of_itself() -> None:
    estimates = ReplicaEstimates()
    assert step_seconds(estimates) == pytest.approx(0.1)
    assert estimates.queue_seconds(NOW, told_seconds=0.3) == 0.3
    assert estimates.rtt_seconds(NOW) is None
    assert estimates.bandwidth_bytes_per_second(NOW) is None
    assert estimates.calibration(NOW) == 1.0


def test_one_report_is_no_proof_and_two_that_agree_are() -> None:
    assert step_seconds(taught(REPORT)) == pytest.approx(0.1)
    assert step_seconds(taught(REPORT, REPORT)) == pytest.approx(0.2)


def test_every_quantity_is_learned() -> None:
    estimates = taught(*[REPORT] * 3)
    assert estimates.queue_seconds(NOW, told_seconds=0.0) == 0.05
    assert estimates.rtt_seconds(NOW) == 0.04
    assert estimates.bandwidth_bytes_per_second(NOW) == 1e6
    assert estimates.calibration(NOW) == pytest.approx(2.0)  # (2.5 - 0.5) / 1.0
    assert estimates.num_reports == 3


def test_what_was_learned_is_forgotten_with_time() -> None:
    estimates = taught(REPORT, REPORT, REPORT)
    assert step_seconds(estimates, NOW + STEP_HALF_LIFE_SECONDS / 2) == pytest.approx(0.2)
    assert step_seconds(estimates, NOW + 2 * STEP_HALF_LIFE_SECONDS) == pytest.approx(0.1)


def test_a_step_is_scaled_to_the_size_that_is_asked_for() -> None:
    estimates = taught(REPORT, REPORT)
    four_times = estimates.step_seconds(4 * ELEMENTS, NOW, told_step_per_element=TOLD)
    assert four_times == pytest.approx(0.8)


@pytest.mark.parametrize("factor", [1.01 * MAX_STEP_RATIO, 0.99 / MAX_STEP_RATIO])
def test_a_step_that_cannot_be_is_not_believed(factor: float) -> None:
    liar = replace(REPORT, cloud_step_seconds=0.1 * factor)
    assert step_seconds(taught(*[liar] * NUM_KEPT)) == pytest.approx(0.1)


def test_a_minority_of_liars_moves_nothing() -> None:
    liar = replace(REPORT, cloud_step_seconds=0.7, rtt_seconds=9.0, total_seconds=10.0)
    estimates = taught(*[REPORT] * 8, *[liar] * 5)
    assert step_seconds(estimates) == pytest.approx(0.2)
    assert estimates.rtt_seconds(NOW) == 0.04
    assert estimates.calibration(NOW) == pytest.approx(2.0)


def test_the_calibration_is_against_the_prediction_without_it() -> None:
    # Predicted with a factor of 2 and right: the factor is right.
    right = replace(REPORT, predicted_seconds=2.0, calibration=2.0)
    assert taught(*[right] * 4).calibration(NOW) == pytest.approx(2.0)


@pytest.mark.parametrize("outcome", ["fallback", "failed", "interrupted"])
def test_a_generation_that_did_not_go_as_planned_says_nothing_of_predictions(outcome: str) -> None:
    assert prediction_ratio(replace(REPORT, outcome=outcome)) is None
    assert taught(*[replace(REPORT, outcome=outcome)] * 4).calibration(NOW) == 1.0


@given(
    st.lists(
        st.builds(
            replace,
            st.just(REPORT),
            total_seconds=st.floats(0, 86_400),
            connect_seconds=st.floats(0, 86_400),
            predicted_seconds=st.none() | st.floats(0, 86_400),
            calibration=st.floats(0.01, 100),
            cloud_step_seconds=st.none() | st.floats(0, 86_400),
            cloud_queue_seconds=st.none() | st.floats(0, 86_400),
            rtt_seconds=st.none() | st.floats(0, 86_400),
            latents_elements=st.integers(0, 2**40),
        ),
        max_size=2 * NUM_KEPT,
    )
)
def test_whatever_is_reported_estimates_stay_within_their_bounds(reports: list[SessionReport]) -> None:
    estimates = taught(*reports)
    step = step_seconds(estimates)
    assert step is not None
    assert step * (1 + 1e-9) >= 0.1 / MAX_STEP_RATIO
    assert step <= 0.1 * MAX_STEP_RATIO * (1 + 1e-9)
    assert estimates.calibration(NOW) * (1 + 1e-9) >= 1 / MAX_CALIBRATION
    assert estimates.calibration(NOW) <= MAX_CALIBRATION * (1 + 1e-9)
    assert 0 <= estimates.queue_seconds(NOW, told_seconds=0.0) <= 600
    rtt = estimates.rtt_seconds(NOW)
    assert rtt is None or 0 <= rtt <= 10
    assert all(len(each) <= NUM_KEPT for each in estimates.as_json().values() if isinstance(each, list))


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=NUM_KEPT), st.floats(0, 1e6))
def test_a_median_is_one_of_its_samples_whatever_their_age(values: list[float], age_seconds: float) -> None:
    median = DecayingMedian(60.0)
    for index, value in enumerate(values):
        median.add(value, NOW + index)
    found = median.value(NOW + len(values) + age_seconds)
    # After a thousand half-lives every weight is 0, and the least sample stands for all.
    assert found in values


def test_of_equal_ages_it_is_the_median() -> None:
    median = DecayingMedian(60.0)
    for value in (5.0, 1.0, 3.0):
        median.add(value, NOW)
    assert median.value(NOW) == 3.0
    assert median.value(NOW, prior=100.0) == 5.0
    assert math.isclose(median.value(NOW + 600, prior=100.0) or 0.0, 100.0)
