"""Reads the dashboards that Grafana provisions, and fills its variables in as Grafana does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A time range and how finely it is looked at. All in seconds.

    Attributes:
        start: Unix time.
        end: Unix time.
        step_seconds: From one point to the next (Grafana's `$__interval`).
        scrape_seconds: From one scrape to the next (the data source's `timeInterval`).
    """

    start: float
    end: float
    step_seconds: float
    scrape_seconds: float

    def expand(self, expr: str) -> str:
        """Return a panel's query with Grafana's variables filled in.

        `$__rate_interval` is the larger of a step and a scrape, and of four scrapes: so every window of a rate holds at
        least two samples, and no sample falls between two windows.
        """
        rate_seconds = max(self.step_seconds + self.scrape_seconds, 4 * self.scrape_seconds)
        for variable, seconds in (
            ("$__rate_interval", rate_seconds),
            ("$__interval", self.step_seconds),
            ("$__range", self.end - self.start),
        ):
            expr = expr.replace(variable, f"{round(1000 * seconds)}ms")
        return expr


@dataclass(frozen=True, kw_only=True)
class PanelQuery:
    """A query as it stands in the file; `legend` names labels as `{{label}}`."""

    expr: str
    legend: str
    instant: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel and its place, in Grafana's grid of 24 columns; `span_seconds` is the longest gap that lines bridge."""

    title: str
    description: str
    kind: str
    unit: str
    stacked: bool
    bound: float | None
    span_seconds: float
    left: int
    top: int
    width: int
    height: int
    queries: tuple[PanelQuery, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A dashboard; `name` is that of its file."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def read_dashboards(folder: Path = DASHBOARDS) -> list[Dashboard]:
    """Return every dashboard of `folder`, by name."""
    return [_dashboard(path) for path in sorted(folder.glob("*.json"))]


def _dashboard(path: Path) -> Dashboard:
    found = json.loads(path.read_text())
    return Dashboard(name=path.stem, title=found["title"], panels=tuple(_panel(each) for each in found["panels"]))


def _panel(found: dict[str, Any]) -> Panel:
    defaults, place = found["fieldConfig"]["defaults"], found["gridPos"]
    custom = defaults.get("custom", {})
    bounds = [step["value"] for step in defaults.get("thresholds", {}).get("steps", []) if step["value"] is not None]
    return Panel(
        title=found["title"],
        description=found["description"],
        kind=found["type"],
        unit=defaults.get("unit") or found["options"]["yAxis"]["unit"],
        stacked=custom.get("stacking", {}).get("mode") == "normal",
        bound=bounds[0] if bounds else None,
        span_seconds=custom.get("spanNulls", 0) / 1000,
        left=place["x"],
        top=place["y"],
        width=place["w"],
        height=place["h"],
        queries=tuple(
            PanelQuery(expr=target["expr"], legend=target["legendFormat"], instant=target["instant"])
            for target in found["targets"]
        ),
    )
