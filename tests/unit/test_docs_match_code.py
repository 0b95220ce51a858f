"""The pages name what the code has, and the reverse."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from cloud_service.metrics import Metrics
from edge_client.metrics import EdgeMetrics
from edge_client.recorder import Recorder
from edge_client.report import make_report
from edge_client.request import GenerationRequest
from orchestrator.link import LinkEstimate

ROOT = Path(__file__).resolve().parents[2]


def series(registry: CollectorRegistry) -> dict[str, tuple[str, set[str]]]:
    """Return {series: (type, labels)} as Prometheus names them."""
    found = {}
    for metric in registry.collect():
        name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        found[name] = ("gauge" if metric.type == "info" else metric.type, labels)
    return found


def test_metrics_page_names_every_series_with_its_type_and_labels() -> None:
    documented = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if line.startswith("| `ecdiff_"):
            documented[cells[1].strip("`")] = (cells[2], cells[3], cells[4])
    cloud, edge = series(Metrics().registry), series(EdgeMetrics().registry)
    assert set(documented) == set(cloud) | set(edge)
    for name, (kind, labels, origin) in documented.items():
        homes = {"cloud": [cloud], "edge": [edge], "both": [cloud, edge]}[origin]
        assert (name in cloud, name in edge) == (cloud in homes, edge in homes), name
        for home in homes:
            assert home[name][0] == kind, name
            # A histogram without a sample shows no labels yet.
            assert home[name][1] <= set(re.findall(r"`([a-z]+)`", labels)), name


def test_report_page_names_every_field() -> None:
    page = (ROOT / "docs" / "report.md").read_text()
    report = make_report(Recorder(request=GenerationRequest(prompt="x"), link=LinkEstimate()))
    missing = [name for name in report if f"`{name}" not in page and f"{name}`" not in page]
    assert missing == []


def test_every_internal_link_of_the_pages_leads_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
    ]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
