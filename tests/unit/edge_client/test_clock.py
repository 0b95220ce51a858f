"""The clock of a deadline: when the edge takes over from a cloud that leads."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest

from edge_client.clock import Clock
from edge_client.edge_model import EdgeModel
from harness.reference import EDGE_MODEL
from wire.fleet_messages import LatencyEstimate
from wire.messages import Plan

PLAN = Plan(num_inference_steps=50, handoff_step=50)
# The edge alone takes 50 * 10 + 20 seconds; the plan, which extrapolates most steps, 300.
STEP_SECONDS, DECODE_SECONDS = 10.0, 20.0
ESTIMATE = LatencyEstimate(handoff_step=34, cloud_calls=6, cloud_compute_seconds=120.0, edge_compute_seconds=180.0)


@pytest.fixture
async def edge() -> AsyncIterator[EdgeModel]:
    model = await EdgeModel.load(str(EDGE_MODEL), device="cpu")
    model.step_seconds.add(STEP_SECONDS)
    model.decode_seconds.add(DECODE_SECONDS)
    yield model
    model.close()


def clock(edge: EdgeModel, deadline_seconds: float | None, estimate: LatencyEstimate | None = ESTIMATE) -> Clock:
    deadline_ms = None if deadline_seconds is None else 1000 * deadline_seconds
    return Clock(PLAN, edge, deadline_ms=deadline_ms, estimate=estimate)


async def test_edge_that_alone_is_in_time_takes_over_at_the_last_moment_that_it_is(edge: EdgeModel) -> None:
    assert clock(edge, 2000.0).seconds_to_takeover(0) == pytest.approx(2000 - 520, abs=2)
    assert clock(edge, 2000.0).seconds_to_takeover(40) == pytest.approx(2000 - 120, abs=2)


async def test_edge_that_alone_is_slower_than_the_plan_leaves_the_cloud_its_predicted_time(edge: EdgeModel) -> None:
    # 340 s is what taking over at once would add; the cloud's own part is over after 120 s.
    assert clock(edge, 400.0).seconds_to_takeover(0) == pytest.approx(300 + 2 * 340 - 520, abs=2)
    assert clock(edge, 400.0).seconds_to_takeover(0) > 120


async def test_deadline_that_no_plan_meets_ends_no_plan_that_keeps_its_predicted_time(edge: EdgeModel) -> None:
    for next_step in range(34):
        assert clock(edge, 0.005).seconds_to_takeover(next_step) > 120 - DECODE_SECONDS


async def test_beyond_the_predicted_handoff_only_the_deadline_counts(edge: EdgeModel) -> None:
    late = clock(edge, 400.0)
    assert late.seconds_to_takeover(40) == pytest.approx(late.seconds_to_spare(40), abs=1)


async def test_without_a_prediction_only_the_deadline_counts(edge: EdgeModel) -> None:
    assert clock(edge, 400.0, None).seconds_to_takeover(0) < 0


async def test_without_a_deadline_there_is_always_time(edge: EdgeModel) -> None:
    assert clock(edge, None).seconds_to_takeover(0) == math.inf
    assert clock(edge, None).seconds_to_spare(0) == math.inf
