"""Series have one name in code, dashboards, alerts and docs/metrics.md, and every one of them is watched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cloud_service.metrics import Metrics
from edge_client.agent.metrics import AgentMetrics
from edge_client.metrics import EdgeMetrics
from harness.dashboards import Selector, all_queries, all_rules, selectors
from orchestrator.service.metrics import FleetMetrics
from wire.serving.tls import ServedCertificate, TlsFiles

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
# What Prometheus makes itself, and labels that it puts on what it scrapes.
OWN_SERIES, OWN_LABELS = {"up", "ALERTS"}, {"job", "instance", "le"}
RECORDED = {rule["record"] for rule in all_rules() if "record" in rule}

# What a series is: its type and the labels that its samples show.
Series = dict[str, tuple[str, set[str]]]


@pytest.fixture(scope="module")
def registered() -> dict[str, Series]:
    """The series of each job, as its processes register them, with TLS where there is a choice."""
    edge = EdgeMetrics().registry
    AgentMetrics(edge)
    cloud, fleet = Metrics().registry, FleetMetrics().registry
    tls = ROOT / "tests" / "data" / "tls"
    for registry in (cloud, fleet):
        ServedCertificate(TlsFiles(cert=tls / "server.pem", key=tls / "server.key")).publish(registry)
    return {"cloud": series(cloud), "edge": series(edge), "orchestrator": series(fleet)}


@pytest.fixture(scope="module")
def selected() -> list[tuple[str, Selector]]:
    """Every selector of every panel and rule, with the place where it stands."""
    return [(place, each) for place, expr in all_queries() for each in selectors(expr)]


def series(registry: CollectorRegistry) -> Series:
    found = {}
    for metric in registry.collect():
        name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        found[name] = ("gauge" if metric.type == "info" else metric.type, labels)
    return found


def documented() -> dict[str, tuple[str, set[str], set[str]]]:
    """Return {series: (type, labels, jobs)} of docs/metrics.md."""
    rows = [re.split(r"\s(?<!\\)\|\s", line.strip("| ")) for line in PAGE.splitlines() if line.startswith("| `ecdiff_")]
    return {
        name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels)), set(jobs.split(", ")))
        for name, kind, _unit, labels, jobs, _question in (row for row in rows if len(row) == 6)
    }


def base(name: str) -> str:
    """Return the histogram that has this bucket, sum or count; a name of another kind as it is."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_the_page_names_every_series_with_its_type_labels_and_jobs(registered: dict[str, Series]) -> None:
    page = documented()
    assert set(page) == set().union(*registered.values())
    for name, (kind, labels, jobs) in page.items():
        assert {job for job, found in registered.items() if name in found} == jobs, name
        for job in jobs:
            found_kind, found_labels = registered[job][name]
            assert found_kind == kind, name
            # A histogram without a sample shows no labels yet.
            assert found_labels <= labels, name


def test_the_page_names_every_recorded_series() -> None:
    assert set(re.findall(r"^\| `(\w+:[\w:]+)` \|", PAGE, re.MULTILINE)) == RECORDED


def test_every_series_that_a_query_names_exists(
    registered: dict[str, Series], selected: list[tuple[str, Selector]]
) -> None:
    unknown = [
        (place, each.series, each.job)
        for place, each in selected
        if each.series not in OWN_SERIES | RECORDED
        and not any(base(each.series) in registered[job] for job in jobs_of(each))
    ]
    assert unknown == []


def test_every_label_that_a_query_matches_exists(selected: list[tuple[str, Selector]]) -> None:
    page = documented()
    unknown = [
        (place, each.series, unknown_labels)
        for place, each in selected
        if base(each.series) in page and (unknown_labels := each.labels - OWN_LABELS - page[base(each.series)][1])
    ]
    assert unknown == []


def test_every_series_of_every_job_is_in_a_dashboard_or_an_alert(
    registered: dict[str, Series], selected: list[tuple[str, Selector]]
) -> None:
    shown = {(job, base(each.series)) for _, each in selected for job in jobs_of(each)}
    missing = [(job, name) for job, found in registered.items() for name in found if (job, name) not in shown]
    assert missing == []


def test_every_recorded_series_is_in_a_dashboard_or_an_alert(selected: list[tuple[str, Selector]]) -> None:
    assert {each.series for _, each in selected} >= RECORDED


def jobs_of(selector: Selector) -> list[str]:
    return [selector.job] if selector.job else ["cloud", "edge", "orchestrator"]
