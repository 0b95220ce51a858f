"""The cost model: what each mode is predicted to take, and that no cost makes anything faster."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_files import COSTS, FILE

from orchestrator.cost import Costs, predict_latency
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.searched_run import plan_and_edge_plan
from wire.edge_plan import EdgePlan
from wire.messages import Plan

NO_SHADOW = EdgePlan()
SHADOW = EdgePlan(shadow=True, residual="linear")
C, E = COSTS.cloud_step_seconds, COSTS.edge_step_seconds
TRANSFER = 8192 / 1e6


def plan(mode: str, **options: int) -> Plan:
    return make_plan(mode, PlanOptions(num_inference_steps=50, **options))


def test_the_edge_alone_waits_for_no_network() -> None:
    estimate = predict_latency(plan("edge"), NO_SHADOW, COSTS)
    assert estimate.total_seconds == pytest.approx(0.015 + 50 * E + 0.03)
    assert (estimate.parts["network"], estimate.cloud_calls, estimate.handoff_step) == (0.0, 0, 0)


def test_the_cloud_alone_costs_one_round_trip_and_one_transfer() -> None:
    estimate = predict_latency(plan("cloud"), NO_SHADOW, COSTS)
    assert estimate.total_seconds == pytest.approx(0.01 + 50 * C + 0.02 + TRANSFER + 0.03)
    assert (estimate.cloud_calls, estimate.parts["handoff"], estimate.parts["edge_compute"]) == (50, 0.0, 0.0)


def test_a_split_costs_the_same_network_and_the_edges_tail() -> None:
    estimate = predict_latency(plan("split"), NO_SHADOW, COSTS)
    assert estimate.total_seconds == pytest.approx(0.01 + 40 * C + 0.02 + TRANSFER + 10 * E + 0.03)
    assert estimate.parts["handoff"] == pytest.approx(0.01 + TRANSFER)
    assert sum(estimate.parts.values()) == pytest.approx(estimate.total_seconds)


def test_extrapolated_steps_cost_nothing() -> None:
    estimate = predict_latency(plan("ecdiff"), NO_SHADOW, COSTS)
    assert (estimate.cloud_calls, estimate.handoff_step) == (17, 37)
    assert estimate.parts["cloud_compute"] == pytest.approx(0.01 + 17 * C)


def test_latents_wait_behind_earlier_ones_where_the_wire_is_slower_than_the_cloud() -> None:
    slow = replace(COSTS, bandwidth_bytes_per_second=8192 / 0.2)
    estimate = predict_latency(plan("split"), NO_SHADOW, slow)
    assert estimate.parts["handoff"] == pytest.approx(0.01 + (2 * 0.2 - C) + 0.2)


def test_a_shadow_with_a_device_of_its_own_costs_its_last_evaluation_and_its_bytes() -> None:
    without, beside = (predict_latency(plan("ecdiff"), each, COSTS) for each in (NO_SHADOW, SHADOW))
    assert beside.parts["cloud_compute"] == without.parts["cloud_compute"]
    assert beside.total_seconds - without.total_seconds == pytest.approx(2 * TRANSFER + E)


def test_a_shadow_on_shared_cores_slows_the_cloud_by_all_its_evaluations_but_the_last() -> None:
    shared = replace(COSTS, shared_cores=True, edge_encode_prompt_seconds=0.0)
    without, beside = (predict_latency(plan("ecdiff"), each, shared) for each in (NO_SHADOW, SHADOW))
    assert beside.parts["cloud_compute"] - without.parts["cloud_compute"] == pytest.approx(16 * E)


def test_an_edge_too_slow_to_shadow_falls_behind_by_no_more_than_it_lets_wait() -> None:
    slow = replace(COSTS, edge_step_seconds=10.0)
    without, beside = (predict_latency(plan("ecdiff"), each, slow) for each in (NO_SHADOW, SHADOW))
    assert beside.total_seconds - without.total_seconds == pytest.approx(90.0 + 2 * TRANSFER)


@pytest.mark.parametrize(("edge_step_seconds", "longer"), [(0.02, "the cloud's"), (2.0, "the edge's own")])
def test_a_correction_costs_the_longer_of_both_evaluations(edge_step_seconds: float, longer: str) -> None:
    costs = replace(COSTS, edge_step_seconds=edge_step_seconds)
    corrected = EdgePlan(corrections="final")
    took = predict_latency(plan("split"), corrected, costs).total_seconds
    round_trip = 0.02 + 2 * TRANSFER + C
    expected = max(round_trip, edge_step_seconds)
    without = predict_latency(plan("split"), NO_SHADOW, costs).total_seconds
    assert took - without == pytest.approx(expected - edge_step_seconds), longer


def test_corrections_count_as_calls_and_stop_at_the_bound() -> None:
    edge_plan = EdgePlan(corrections="planned", correction_steps=(10, 41, 44, 47), max_cloud_calls=42)
    estimate = predict_latency(plan("split", max_cloud_calls=42), edge_plan, COSTS)
    assert estimate.cloud_calls == 42


def test_on_shared_cores_the_cloud_corrects_slower_while_the_edge_evaluates() -> None:
    shared = replace(COSTS, shared_cores=True, rtt_seconds=0.0, bandwidth_bytes_per_second=None)
    assert shared.correction_price.seconds == pytest.approx(C + E)
    far = replace(shared, rtt_seconds=2 * E)
    assert far.correction_price.seconds == pytest.approx(C + 2 * E), "the edge is done when its latents arrive"


def test_an_edge_slow_to_encode_is_waited_for() -> None:
    slow = replace(COSTS, edge_encode_prompt_seconds=60.0)
    assert predict_latency(plan("split"), NO_SHADOW, slow).total_seconds == pytest.approx(60.0 + 10 * E + 0.03)
    quick = predict_latency(plan("cloud"), NO_SHADOW, COSTS)
    assert predict_latency(plan("cloud"), NO_SHADOW, slow) == quick


def test_agreement_ends_the_lead_at_the_first_real_step_that_is_good_enough() -> None:
    searched = FILE.plans[1]
    for tolerance, handoff_step in ((0.1, 4), (0.15, 4), (1.0, 2)):
        cloud, edge = plan_and_edge_plan(FILE, searched, tolerance=tolerance)
        assert predict_latency(cloud, edge, COSTS).handoff_step == handoff_step
    cloud, edge = plan_and_edge_plan(FILE, searched, tolerance=0.1, shadow=False)
    assert predict_latency(cloud, edge, COSTS).handoff_step == searched.handoff_step


def test_a_policy_that_adapts_is_taken_to_make_every_call_it_may() -> None:
    options = PlanOptions(num_inference_steps=50, handoff_step=50, refresh="easycache", max_cloud_calls=20)
    assert predict_latency(make_plan("ecdiff", options), NO_SHADOW, COSTS).cloud_calls == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("rtt_seconds", -0.1), ("edge_step_seconds", float("nan")), ("bandwidth_bytes_per_second", 0.0)],
)
def test_costs_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(COSTS, **{name: value})


seconds = st.floats(0.0, 10.0)
all_costs = st.builds(
    Costs,
    rtt_seconds=seconds,
    bandwidth_bytes_per_second=st.none() | st.floats(1e3, 1e9),
    latents_bytes=st.integers(1, 10**6),
    cloud_step_seconds=seconds,
    cloud_queue_seconds=seconds,
    edge_step_seconds=seconds,
    encode_prompt_seconds=seconds,
    edge_encode_prompt_seconds=seconds,
    decode_seconds=seconds,
    shared_cores=st.booleans(),
)
GROWING = [field.name for field in fields(Costs) if field.name.endswith("_seconds")]


def both_plans() -> list[tuple[Plan, EdgePlan]]:
    modes = [plan(mode) for mode in ("cloud", "edge", "split", "ecdiff")]
    adaptive = [plan_and_edge_plan(FILE, each, tolerance=0.1) for each in FILE.plans]
    return [*((each, NO_SHADOW) for each in modes), (modes[-1], SHADOW), *adaptive]


@given(costs=all_costs, plans=st.sampled_from(both_plans()), name=st.sampled_from(GROWING), more=seconds)
def test_no_cost_that_grows_makes_a_plan_faster(
    costs: Costs, plans: tuple[Plan, EdgePlan], name: str, more: float
) -> None:
    dearer = replace(costs, **{name: getattr(costs, name) + more})
    before, after = (predict_latency(*plans, each).total_seconds for each in (costs, dearer))
    assert after >= before - 1e-6


@given(costs=all_costs, plans=st.sampled_from(both_plans()), factor=st.floats(1.0, 100.0))
def test_a_wider_or_larger_link_changes_latency_the_right_way(
    costs: Costs, plans: tuple[Plan, EdgePlan], factor: float
) -> None:
    took = predict_latency(*plans, costs).total_seconds
    if costs.bandwidth_bytes_per_second is not None:
        wider = replace(costs, bandwidth_bytes_per_second=costs.bandwidth_bytes_per_second * factor)
        assert predict_latency(*plans, wider).total_seconds <= took + 1e-6
    larger = replace(costs, latents_bytes=int(costs.latents_bytes * factor))
    assert predict_latency(*plans, larger).total_seconds >= took - 1e-6


@given(costs=all_costs, plans=st.sampled_from(both_plans()))
def test_sharing_cores_never_helps_and_parts_add_up(costs: Costs, plans: tuple[Plan, EdgePlan]) -> None:
    own, shared = (predict_latency(*plans, replace(costs, shared_cores=each)) for each in (False, True))
    assert shared.total_seconds >= own.total_seconds - 1e-6
    assert all(part >= 0.0 for part in own.parts.values())
    assert sum(own.parts.values()) == own.total_seconds


def test_a_start_from_a_picture_costs_the_steps_that_are_left() -> None:
    later = replace(COSTS, start_step=20)
    cloud = predict_latency(plan("cloud"), NO_SHADOW, later)
    assert cloud.total_seconds == pytest.approx(0.01 + 30 * C + 0.02 + TRANSFER + 0.03)
    assert (cloud.cloud_calls, cloud.handoff_step) == (30, 50)
    warmed_up = predict_latency(plan("ecdiff"), NO_SHADOW, later)
    assert (warmed_up.cloud_calls, warmed_up.handoff_step) == (7 + 3, 37)
    behind = predict_latency(plan("ecdiff"), NO_SHADOW, replace(COSTS, start_step=40))
    assert (behind.cloud_calls, behind.handoff_step, behind.parts["network"]) == (0, 40, 0.0)
    assert behind.total_seconds == pytest.approx(0.015 + 10 * E + 0.03)
