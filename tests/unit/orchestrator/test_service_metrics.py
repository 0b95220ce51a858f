"""What the orchestrator's series and `orchestrator status` show of replicas that go down or change their model."""

from __future__ import annotations

import math

import pytest
from fleet_samples import NOW, A, description, fleet_of
from rich.console import Console

from edge_client.series import SERIES
from orchestrator.service.metrics import FleetMetrics
from orchestrator.service.show import replicas_table
from wire.fleet_messages import FleetStatus, Replica, SessionReport

REPORT = SessionReport(mode="cloud", outcome="done", replica=A, rtt_seconds=0.05)


def shown(metrics: FleetMetrics, series: str) -> float | None:
    return metrics.registry.get_sample_value(f"ecdiff_fleet_replica_{series}", {"replica": A})


def printed(replica: Replica) -> str:
    console = Console(width=130)
    with console.capture() as captured:
        console.print(replicas_table(FleetStatus(version="0", uptime_seconds=0.0, replicas=(replica,))))
    return captured.get()


def test_a_replica_that_is_down_shows_no_sessions_and_no_queue() -> None:
    fleet, metrics = fleet_of(A), FleetMetrics()
    fleet.saw(A, description(sessions=3, queue=2))
    metrics.replica(fleet.replica(A, NOW))
    assert (shown(metrics, "up"), shown(metrics, "sessions"), shown(metrics, "queue")) == (1, 3, 2)
    assert "3 of 4" in printed(fleet.replica(A, NOW))
    fleet.lost(A, "gone")
    metrics.replica(fleet.replica(A, NOW))
    assert (shown(metrics, "up"), shown(metrics, "sessions"), shown(metrics, "queue")) == (0, 0, 0)
    assert shown(metrics, "max_sessions") == 4
    assert "of 4" not in printed(fleet.replica(A, NOW))


def test_what_was_learned_of_another_model_is_not_shown_of_this_one() -> None:
    fleet, metrics = fleet_of(A), FleetMetrics()
    fleet.saw(A, description())
    fleet.learn(REPORT, NOW)
    metrics.replica(fleet.replica(A, NOW))
    assert (shown(metrics, "rtt_seconds"), shown(metrics, "step_seconds")) == (0.05, 0.1)
    fleet.saw(A, description(fingerprint="other", step_seconds=0.0))
    metrics.replica(fleet.replica(A, NOW))
    assert (shown(metrics, "rtt_seconds"), shown(metrics, "step_seconds")) == (None, None)


@pytest.mark.parametrize("name", ["handoff_seconds", "generation_seconds"])
def test_quantiles_of_an_edge_and_of_the_fleet_compare(name: str) -> None:
    samples = [sample for metric in FleetMetrics().registry.collect() for sample in metric.samples]
    of_fleet = {float(each.labels["le"]) for each in samples if each.name == f"ecdiff_fleet_{name}_bucket"}
    assert of_fleet == {*SERIES[f"ecdiff_{name}"].buckets, math.inf}
