"""The queries of dashboards and rules: what they name, and whether a live Prometheus has data for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from bench.dashboards import Panel, Prometheus, Window, read_dashboards

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
_NUM_POINTS = 240


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A series that a query selects, and what it expects of it.

    Attributes:
        series: Its name, with `_bucket` and the like.
        labels: Labels that the query matches.
        job: The job whose series it is; empty where the query takes any.
    """

    series: str
    labels: frozenset[str]
    job: str


def all_panels() -> Iterator[tuple[str, Panel]]:
    """Yield every panel with the name of its dashboard."""
    for dashboard in read_dashboards():
        for panel in dashboard.panels:
            yield dashboard.name, panel


def all_rules() -> list[dict[str, Any]]:
    """Return every rule of deploy/prometheus/rules, as its file has it."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def all_queries() -> Iterator[tuple[str, str]]:
    """Yield every query of panels and rules with the place where it stands, Grafana's variables filled in."""
    window = Window(start=0, end=1800, step_seconds=10, scrape_seconds=5)
    for dashboard, panel in all_panels():
        for query in panel.queries:
            yield f"{dashboard}: {panel.title}", window.expand(query.expr)
    for rule in all_rules():
        yield rule.get("alert") or rule["record"], rule["expr"]


def selectors(expr: str) -> list[Selector]:
    """Return what a query selects.

    Raises:
        ValueError: It is no PromQL.
    """
    found: list[Selector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matched = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            found.append(Selector(series=node.name, labels=frozenset(matched), job=matched.get("job", "")))

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def queries_without_data(url: str, seconds: float) -> list[str]:
    """Return the panel queries for which a Prometheus has no number in the last `seconds`."""
    prometheus = Prometheus(url)
    window = prometheus.window(time.time(), seconds, _NUM_POINTS)
    return [
        f"{dashboard}: {panel.title}: {query.expr}"
        for dashboard, panel in all_panels()
        for query in panel.queries
        if not any(series.has_data for series in prometheus.run(query, window))
    ]
