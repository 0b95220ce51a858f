"""The report: what is counted, and what is discarded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_client.metrics import EdgeMetrics
from edge_client.recorder import Recorder, Snapshot
from edge_client.report import make_report
from edge_client.request import GenerationRequest
from orchestrator.handoff import HandoffReason
from orchestrator.link import LinkEstimate, ProbeSample
from orchestrator.plan import PlanOptions
from wire.clock import stamp_seconds
from wire.messages import HandedOff, Source, State, Step, Totals


def recorder(mode: str = "split", steps: int = 6) -> Recorder:
    options = PlanOptions(num_inference_steps=steps)
    return Recorder(request=GenerationRequest(prompt="x", mode=mode, plan_options=options), link=LinkEstimate())


def cloud_steps(target: Recorder, letters: str) -> None:
    for index, letter in enumerate(letters):
        source = Source.CLOUD if letter == "C" else Source.EXTRAPOLATED
        target.cloud_step(Step(step_index=index, source=source, compute_seconds=0.25), received_at=0.0)


def test_steps_past_the_takeover_are_discarded_but_counted() -> None:
    run = recorder()
    cloud_steps(run, "CCxCC")
    run.hand_off(HandoffReason.CLOUD_LOST, 3)
    for index in (3, 4, 5):
        run.edge_step(index)
    assert run.step_sources == "CCxeee"
    assert run.nfe == {"cloud": 4, "cloud_discarded": 2, "extrapolated": 1, "edge": 3, "corrections": 0}


def test_a_lost_clouds_time_is_summed_from_its_step_headers() -> None:
    run = recorder()
    cloud_steps(run, "CCC")
    run.cloud_totals_from_steps()
    assert run.seconds["cloud_compute"] == pytest.approx(0.75)


def test_report_is_json_and_says_null_where_nothing_happened() -> None:
    report = json.loads(json.dumps(make_report(recorder("edge")), allow_nan=False))
    assert report["handoff"] is None
    assert report["network"]["clock_offset_uncertainty_seconds"] is None
    assert report["fallbacks"] == []


def test_transit_is_measured_with_the_clock_offset_taken_off() -> None:
    run = recorder()
    run.link.add_probe(ProbeSample(t0=10.0, t1=1010.01, t2=1010.01, t3=10.02))
    latents = np.zeros((1, 4, 2, 2), np.float32)
    run.cloud_step(Step(step_index=0, source=Source.CLOUD, latents=latents, sent_at=1020.0), received_at=20.05)
    assert run.transit_seconds == pytest.approx([0.05])


def test_age_of_latents_runs_from_the_end_of_the_clouds_step_to_the_decision() -> None:
    run = recorder()
    run.link.add_probe(ProbeSample(t0=10.0, t1=1010.01, t2=1010.01, t3=10.02))
    latents, now = np.zeros((1, 4, 2, 2), np.float32), stamp_seconds()
    waited = {"wait_seconds": 0.5, "encode_seconds": 0.25}
    for index, age in enumerate((3.0, 2.0)):
        # The cloud's clock is 1000 s ahead; a tenth of a second on the way.
        step = Step(step_index=index, source=Source.CLOUD, latents=latents, sent_at=now + 999.9 - age, **waited)
        run.cloud_step(step, received_at=now - age)
    run.ages.decided("agreement", 1)
    run.ages.decided("agreement", 2)
    run.ages.decided("handoff", 2)
    run.ages.decided("handoff", 0)  # the start of the trajectory, which nobody made
    ages = make_report(run)["network"]["latents_age_seconds"]
    assert ages == {
        "agreement": pytest.approx(3.85, abs=0.5),
        "handoff": pytest.approx(2.85, abs=0.5),
        "correction": None,
    }
    assert ages["agreement"] - ages["handoff"] == pytest.approx(1.0, abs=0.5)


def test_age_of_a_lost_clouds_latents_is_by_its_own_clock_after_a_move() -> None:
    run = recorder()
    run.link.add_probe(ProbeSample(t0=10.0, t1=1010.01, t2=1010.01, t3=10.02))
    now = stamp_seconds()
    latents = np.zeros((1, 4, 2, 2), np.float32)
    run.cloud_step(Step(step_index=0, source=Source.CLOUD, latents=latents, sent_at=now + 999.0), received_at=now)
    run.link = LinkEstimate()  # another cloud, whose clock is right, and which makes no step
    run.link.add_probe(ProbeSample(t0=10.0, t1=10.01, t2=10.01, t3=10.02))
    run.ages.decided("handoff", 1)
    assert run.ages.seconds["handoff"] == [pytest.approx(1.0, abs=0.5)]


def test_handoff_stages_come_from_where_they_happen() -> None:
    run = recorder()
    run.link.add_probe(ProbeSample(t0=0.0, t1=0.0, t2=0.0, t3=0.0))
    state = State(step_index=3, latents=np.zeros((1, 4, 2, 2), np.float32))
    message = HandedOff(state=state, totals=Totals(), wait_seconds=0.001, encode_seconds=0.002, sent_at=5.0)
    run.handoff_latency(message, received_at=5.25, decode_seconds=0.004)
    assert run.handoff_stages == pytest.approx({"cloud_encode": 0.003, "transit": 0.25, "edge_decode": 0.004})


def test_progress_shows_the_steps_so_far() -> None:
    seen: list[Snapshot] = []
    run = recorder()
    run.on_progress = seen.append
    cloud_steps(run, "CCx")
    run.fall_back("cloud lost")
    assert [snapshot.step_sources for snapshot in seen[:3]] == ["C", "CC", "CCx"]
    assert seen[-1].note == "cloud lost"


def test_metrics_of_a_running_generation_are_counted_once() -> None:
    run, metrics = recorder(), EdgeMetrics()
    metrics.begin(run)
    cloud_steps(run, "CCxC")
    metrics.catch_up()
    metrics.catch_up()

    def count(source: str) -> float | None:
        return metrics.registry.get_sample_value("ecdiff_nfe_total", {"source": source})

    # Which extrapolated steps count is known when the handoff is.
    assert (count("cloud"), count("extrapolated")) == (3, 0)
    cloud_steps(run, "CCxCC")
    metrics.finished(with_fallbacks=False)
    assert (count("cloud"), count("extrapolated")) == (4, 1)
    told = [each for each in metrics.latest if each.series == "ecdiff_nfe_total" and each.labels["source"] == "cloud"]
    assert sum(sum(each.values) for each in told) == 4


def test_metrics_count_what_the_report_counts(tmp_path: object) -> None:
    run, metrics = recorder(), EdgeMetrics()
    metrics.begin(run)
    cloud_steps(run, "CCxC")
    run.hand_off(HandoffReason.PLAN, 4)
    run.handoff_stages = {"transit": 0.01, "total": 0.02}
    for index in (4, 5):
        run.edge_step(index)
    metrics.finished(with_fallbacks=False)
    metrics.begin(recorder())
    metrics.failed(interrupted=True)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("ecdiff_nfe_total", source="cloud") == 3
    assert value("ecdiff_nfe_total", source="extrapolated") == 1
    assert value("ecdiff_nfe_total", source="edge") == 2
    assert value("ecdiff_handoffs_total", reason="plan") == 1
    assert value("ecdiff_handoff_seconds_sum", stage="total") == pytest.approx(0.02)
    assert value("ecdiff_generations_total", mode="split", outcome="done") == 1
    assert value("ecdiff_generations_total", mode="split", outcome="interrupted") == 1
