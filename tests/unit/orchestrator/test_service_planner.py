"""The plan that an edge gets, and predictions that get better with what edges report."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_samples import CLOUD, EDGE, EDGE_COSTS, ELEMENTS, NOW, QUERY, A, description, fleet_of
from plan_files import COSTS, FILE

from orchestrator.choice import choose_plan
from orchestrator.cost import predict_latency
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.searched_plan import PlanFile, read_plan_file
from orchestrator.service.estimates import MAX_CALIBRATION
from orchestrator.service.fleet import Fleet
from orchestrator.service.library import PlanLibrary
from orchestrator.service.planner import choose
from wire.errors import InvalidRequest
from wire.fleet_messages import PAPER, PlanAnswer, SessionReport


@pytest.fixture
def file(tmp_path: Path) -> PlanFile:
    """What a reader finds: the numbers are rounded."""
    FILE.write(tmp_path / "ours.json")
    return read_plan_file(tmp_path / "ours.json")


@pytest.fixture
def library(file: PlanFile, tmp_path: Path) -> PlanLibrary:
    library = PlanLibrary(tmp_path)
    library.refresh()
    return library


@pytest.fixture
def fleet() -> Fleet:
    fleet = fleet_of(A)
    fleet.saw(A, description())
    return fleet


def test_the_plan_is_the_one_that_the_edge_would_have_chosen_from_the_same_file(
    library: PlanLibrary, fleet: Fleet, file: PlanFile
) -> None:
    answer = choose(replace(QUERY, tolerance=0.06, max_cloud_calls=7), library, fleet, NOW)
    alone = choose_plan(file, tolerance=0.06, max_cloud_calls=7)
    assert (answer.plan, answer.edge_plan, answer.why) == (alone.plan, alone.edge_plan, alone.why)
    assert answer.origin == "ours.json"
    assert answer.expected_error == alone.error
    assert answer.estimate is None


def test_measured_costs_give_the_same_prediction_as_on_the_edge(
    library: PlanLibrary, fleet: Fleet, file: PlanFile
) -> None:
    answer = choose(replace(QUERY, costs=COSTS.known, deadline_seconds=0.9), library, fleet, NOW)
    alone = choose_plan(file, deadline_seconds=0.9, costs=COSTS)
    assert answer.plan == alone.plan
    assert answer.estimate == alone.estimate
    assert answer.calibration == 1.0


@pytest.mark.parametrize(
    "other",
    [
        {"cloud_fingerprint": "x"},
        {"edge_fingerprint": "x"},
        {"scheduler": "unipc"},
        {"num_inference_steps": 20},
    ],
)
def test_without_a_searched_plan_it_is_the_papers(other: dict[str, object], library: PlanLibrary, fleet: Fleet) -> None:
    query = replace(QUERY, **other)  # type: ignore[arg-type]
    answer = choose(query, library, fleet, NOW)
    assert answer.origin == PAPER
    options = PlanOptions(num_inference_steps=query.num_inference_steps)
    assert answer.plan == make_plan("adaptive", options)
    assert "no searched plan for this pair" in answer.lines[0]


def test_of_two_files_the_one_with_the_closer_guidance_is_taken(tmp_path: Path, fleet: Fleet) -> None:
    FILE.write(tmp_path / "a.json")
    replace(FILE, guidance_scale=7.5).write(tmp_path / "b.json")
    library = PlanLibrary(tmp_path)
    library.refresh()
    assert choose(replace(QUERY, guidance_scale=6.0), library, fleet, NOW).origin == "b.json"
    strange = choose(replace(QUERY, guidance_scale=3.0), library, fleet, NOW)
    assert strange.origin == "a.json"
    assert "searched at guidance 2, not at 3" in strange.lines[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline_seconds": 1.0},  # without the costs
        {"handoff_step": 9, "max_cloud_calls": 1},
        {"corrections": "often"},
        {"scheduler": "unipc", "corrections": "planned"},
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    wrong: dict[str, object], library: PlanLibrary, fleet: Fleet
) -> None:
    with pytest.raises(InvalidRequest):
        choose(replace(QUERY, **wrong), library, fleet, NOW)  # type: ignore[arg-type]


def test_a_scaled_cost_scales_every_prediction() -> None:
    for plan in FILE.plans:
        answer = choose_plan(replace(FILE, plans=(plan,)), costs=COSTS)
        scaled = predict_latency(answer.plan, answer.edge_plan, COSTS.scaled(1.7))
        assert answer.estimate is not None
        for name, seconds in answer.estimate.parts.items():
            assert scaled.parts[name] == pytest.approx(1.7 * seconds)


def session(answer: PlanAnswer, took_seconds: float, step_seconds: float) -> SessionReport:
    estimate = answer.estimate
    return SessionReport(
        mode="adaptive",
        outcome="done",
        replica=A,
        total_seconds=took_seconds,
        predicted_seconds=None if estimate is None else estimate.total_seconds,
        calibration=answer.calibration,
        cloud_step_seconds=step_seconds,
        cloud_queue_seconds=0.0,
        rtt_seconds=COSTS.rtt_seconds,
        bandwidth_bytes_per_second=COSTS.bandwidth_bytes_per_second,
        latents_elements=ELEMENTS,
    )


@pytest.mark.parametrize("bias", [0.6, 1.0, 1.8])
def test_predictions_get_better_with_reports_from_a_wrong_start(
    bias: float, library: PlanLibrary, fleet: Fleet
) -> None:
    """The replica says a step takes a third of what it does, and everything takes `bias` times what the model says."""
    chance = random.Random(0)
    true_costs = replace(COSTS, cloud_step_seconds=0.3)
    fleet.saw(A, description(step_seconds=0.1))
    # The round trip that the first edge measured; the rest is to be learned.
    query = replace(QUERY, costs=replace(EDGE_COSTS, rtt_seconds=COSTS.rtt_seconds))
    errors = []
    for _ in range(24):
        answer = choose(query, library, fleet, NOW)
        true = predict_latency(answer.plan, answer.edge_plan, true_costs).total_seconds
        took = true * bias * chance.uniform(0.9, 1.1)
        assert answer.estimate is not None
        errors.append(abs(answer.estimate.total_seconds - took) / took)
        fleet.learn(session(answer, took, 0.3 * chance.uniform(0.9, 1.1)), NOW)
    before, after = sum(errors[:2]) / 2, sum(errors[-8:]) / 8
    assert before > 0.25
    assert after < 0.12
    assert after < before / 2


def test_a_flood_of_lies_moves_a_prediction_by_a_bounded_factor(library: PlanLibrary, fleet: Fleet) -> None:
    query = replace(QUERY, costs=COSTS.known)
    honest = choose(query, library, fleet, NOW)
    assert honest.estimate is not None
    for _ in range(1000):
        fleet.learn(session(honest, 10 * honest.estimate.total_seconds, 1e4), NOW)
    spoilt = choose(query, library, fleet, NOW)
    assert spoilt.estimate is not None
    ratio = spoilt.estimate.total_seconds / honest.estimate.total_seconds
    assert ratio == pytest.approx(MAX_CALIBRATION)
    assert spoilt.plan == honest.plan


def test_a_pair_is_known_by_its_plans(library: PlanLibrary) -> None:
    assert library.knows_pair(CLOUD, EDGE)
    assert not library.knows_pair(CLOUD, "other")
