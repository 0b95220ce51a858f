"""Panels and dashboards as they are thought of, and the JSON that Grafana provisions of them."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["lines", "stack", "value", "heatmap"]
Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "ecdiff-prometheus"}
RATE = "$__rate_interval"
RANGE = "$__range"

_COLUMNS = 24
_ROW_HEIGHTS = {"value": 4, "lines": 8, "stack": 8, "heatmap": 8}
_SCHEMA_VERSION = 39
_SPAN_MS = 60_000
# By whether the panel is wide.
_LEGENDS: dict[bool, Json] = {
    True: {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]},
    False: {"displayMode": "list", "placement": "bottom", "calcs": []},
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a panel; `legend` may name labels as `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        description: How to read it.
        unit: Grafana's name of the unit.
        queries: What is drawn.
        kind: Lines over time, the same stacked, one value over the whole range, or a histogram over time.
        bound: A line that the values should stay below; None for none.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A page of panels, row by row; the panels of a row share its width."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[Panel, ...], ...]


# ------------------------------------------------------------------------------ queries


def quantile(q: float, histogram: str, selector: str, by: str = "", window: str = RATE) -> str:
    """Return PromQL for a quantile of a histogram, one for each value of the label `by`."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({labels}) (rate({histogram}_bucket{{{selector}}}[{window}])))"


def quantiles(histogram: str, selector: str, *qs: float, by: str = "", window: str = RATE) -> tuple[Query, ...]:
    """Return a query for each of the quantiles."""
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(Query(expr=quantile(q, histogram, selector, by, window), legend=f"{legend}p{100 * q:g}") for q in qs)


def mean(histogram: str, selector: str, by: str = "") -> Query:
    """Return the query for the mean of a histogram, one for each value of the labels `by`."""
    grouped = f"sum by ({by})" if by else "sum"
    total, count = (f"{grouped} (rate({histogram}_{part}{{{selector}}}[{RATE}]))" for part in ("sum", "count"))
    return Query(expr=f"{total} / {count}", legend=_legend(by) if by else "mean")


def per_minute(counter: str, selector: str, by: str) -> Query:
    """Return the query for a counter's increase a minute, one for each value of the labels `by`."""
    return Query(expr=f"60 * sum by ({by}) (rate({counter}{{{selector}}}[{RATE}]))", legend=_legend(by))


def increases(histogram: str, selector: str) -> Query:
    """Return the query of a heatmap: what came into each bucket."""
    return Query(expr=f"sum by (le) (increase({histogram}_bucket{{{selector}}}[{RATE}]))", legend="{{le}}")


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))


# ------------------------------------------------------------------------------ JSON


def dashboard_json(dashboard: Dashboard) -> Json:
    """Return what Grafana provisions."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["ecdiff"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # one cross-hair over all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": []},
        "links": [
            {
                "title": "ecdiff",
                "type": "dashboards",
                "tags": ["ecdiff"],
                "asDropdown": False,
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": list(_panels(dashboard.rows)),
    }


def _panels(rows: tuple[tuple[Panel, ...], ...]) -> Iterator[Json]:
    top, number = 0, 0
    for row in rows:
        width, height = _COLUMNS // len(row), max(_ROW_HEIGHTS[panel.kind] for panel in row)
        for column, panel in enumerate(row):
            number += 1
            place = {"x": column * width, "y": top, "w": width, "h": height}
            drawn = {
                "id": number,
                "title": panel.title,
                "description": panel.description,
                "datasource": DATASOURCE,
                "gridPos": place,
                "targets": [
                    _target(panel.kind, *each) for each in zip(string.ascii_uppercase, panel.queries, strict=False)
                ],
                **_DRAWN[panel.kind](panel),
            }
            if panel.kind in ("lines", "stack"):
                drawn["options"]["legend"] |= _LEGENDS[width >= _COLUMNS // 2]
            yield drawn
        top += height


def _target(kind: Kind, ref: str, query: Query) -> Json:
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "instant": kind == "value",
        "range": kind != "value",
        "format": "heatmap" if kind == "heatmap" else "time_series",
    }


def _lines(panel: Panel) -> Json:
    stacked = panel.kind == "stack"
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.bound is not None:
        steps.append({"color": "red", "value": panel.bound})
    return {
        "type": "timeseries",
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "color": {"mode": "palette-classic"},
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": 60 if stacked else 0,
                    "showPoints": "auto",
                    # Between two generations there is nothing to measure; a longer gap is one that should be seen.
                    "spanNulls": _SPAN_MS,
                    "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
                    "thresholdsStyle": {"mode": "off" if panel.bound is None else "dashed"},
                },
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "right",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _value(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.bound is not None:
        steps.append({"color": "red", "value": panel.bound})
    return {
        "type": "stat",
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
    }


def _heatmap(panel: Panel) -> Json:
    return {
        "type": "heatmap",
        "fieldConfig": {"defaults": {"custom": {"scaleDistribution": {"type": "linear"}}}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "fill": "dark-orange", "exponent": 0.5},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
        },
    }


_DRAWN = {"lines": _lines, "stack": _lines, "value": _value, "heatmap": _heatmap}
