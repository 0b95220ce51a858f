"""Draws a dashboard's data, laid out as its panels are."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.dashboards.panels import Dashboard, Panel, Window
from bench.dashboards.prometheus import Prometheus, Series

_WIDTH_INCHES, _UNIT_INCHES = 16.0, 0.36
_COLUMNS = 24
_MAX_LEGEND = 12
_COLOURS = 128
Named = list[tuple[str, Series]]


def draw(
    dashboard: Dashboard, prometheus: Prometheus, window: Window, path: Path, marks: Mapping[str, float] | None = None
) -> list[str]:
    """Draw one dashboard to a PNG.

    Args:
        dashboard: Its panels.
        prometheus: Has the data.
        window: What of it is drawn.
        path: The PNG.
        marks: Unix times at which something began, by its name.

    Returns:
        The titles of the panels that have no data.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(panel.top + panel.height for panel in dashboard.panels)
    height_inches = _UNIT_INCHES * rows + 0.6
    figure = pyplot.figure(figsize=(_WIDTH_INCHES, height_inches))
    top = 1.0 - 0.5 / height_inches
    unit = (top - 0.1 / height_inches) / rows
    figure.text(0.01, 1.0 - 0.32 / height_inches, dashboard.title, fontsize=15, weight="bold")
    empty = []
    for panel in dashboard.panels:
        named = [
            (series.name(query.legend), series) for query in panel.queries for series in prometheus.run(query, window)
        ]
        named = [each for each in named if each[1].has_data]
        if not named:
            empty.append(panel.title)
        left, width = panel.left / _COLUMNS, panel.width / _COLUMNS
        bottom = top - unit * (panel.top + panel.height)
        room = (0.62 / _WIDTH_INCHES, 0.38 / height_inches, 0.12 / _WIDTH_INCHES, 0.3 / height_inches)
        box = (left + room[0], bottom + room[1], width - room[0] - room[2], unit * panel.height - room[1] - room[3])
        axis = figure.add_axes(box)
        axis.set_title(panel.title, fontsize=9, loc="left")
        _DRAWN[panel.kind](axis, panel, named, window)
        if panel.kind != "stat":
            _mark(axis, marks or {}, window)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    Image.open(path).quantize(_COLOURS).save(path, optimize=True)
    return empty


def text_of(value: float, unit: str) -> str:
    """Return a value as Grafana would write it in `unit`."""
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        for size, name in ((2**20, "MiB"), (2**10, "KiB")) if unit == "bytes" else ((1e6, "MB/s"), (1e3, "kB/s")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} {'B' if unit == 'bytes' else 'B/s'}"
    return f"{value:.4g}{unit.removeprefix('suffix:') if unit.startswith('suffix:') else ''}"


def _draw_lines(axis: Any, panel: Panel, named: Named, window: Window) -> None:
    if panel.stacked:
        _draw_stack(axis, panel, named, window)
    else:
        for name, series in named:
            times = _grid(window)
            axis.plot(_minutes(times, window), _bridged(series, times, panel), lw=1, label=name)
            axis.plot(_minutes(series.times, window), series.values, ".", ms=3, color=axis.lines[-1].get_color())
    if panel.bound is not None:
        axis.axhline(panel.bound, color="tab:red", lw=1, ls="--")
    _label_time(axis, window)
    lowest = min((float(np.nanmin(series.values)) for _, series in named), default=0.0)
    axis.set_ylim(bottom=min(0.0, 1.05 * lowest))
    axis.yaxis.set_major_formatter(lambda value, _: text_of(value, panel.unit))
    names = axis.get_legend_handles_labels()[1]
    if names:
        columns = 1 if len(names) <= _MAX_LEGEND else 2
        axis.legend(fontsize=6, loc="best", ncols=columns, framealpha=0.7)


def _draw_stack(axis: Any, panel: Panel, named: Named, window: Window) -> None:
    times = _grid(window)
    layers = [(name, np.nan_to_num(_bridged(series, times, panel))) for name, series in named]
    shown = [(name, layer) for name, layer in layers if layer.any()]
    if shown:
        names, values = zip(*shown, strict=True)
        axis.stackplot(_minutes(times, window), values, labels=names, alpha=0.8)


def _minutes(times: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    return (times - window.start) / 60


def _grid(window: Window) -> NDArray[np.float64]:
    return np.arange(window.start, window.end + window.step_seconds / 2, window.step_seconds)


def _bridged(series: Series, times: NDArray[np.float64], panel: Panel) -> NDArray[np.float64]:
    """Return a series at `times`, gaps bridged where they are no longer than the panel bridges; else not a number."""
    known = np.isfinite(series.values)
    at, values = series.times[known], series.values[known]
    after = np.searchsorted(at, times - 1e-3)
    before = np.searchsorted(at, times + 1e-3) - 1
    inside = (before >= 0) & (after < len(at))
    gaps = at[np.minimum(after, len(at) - 1)] - at[np.maximum(before, 0)]
    return np.where(inside & (gaps <= panel.span_seconds), np.interp(times, at, values), np.nan)


def _draw_value(axis: Any, panel: Panel, named: Named, _window: Window) -> None:
    axis.axis("off")
    text = "no data" if not named else text_of(float(named[0][1].values[-1]), panel.unit)
    over = bool(named) and panel.bound is not None and named[0][1].values[-1] >= panel.bound
    colour = "tab:gray" if not named else "tab:red" if over else "tab:green"
    axis.set_title("\n".join(textwrap.wrap(panel.title, 40)), fontsize=9, loc="left")
    axis.text(0.5, 0.45, text, ha="center", va="center", fontsize=22, color=colour, transform=axis.transAxes)


def _draw_heatmap(axis: Any, panel: Panel, named: Named, window: Window) -> None:
    _label_time(axis, window)
    named = sorted(named, key=lambda each: float(each[1].labels["le"]))
    if not named:
        return
    times = named[-1][1].times
    cumulative = np.array([np.interp(times, series.times, np.nan_to_num(series.values)) for _, series in named])
    counts = np.maximum(np.diff(cumulative, axis=0, prepend=0.0), 0.0)
    # Buckets that stay empty at either end say nothing.
    filled = np.flatnonzero(counts.max(axis=1) > 1e-9)
    low, high = (int(filled[0]), int(filled[-1])) if filled.size else (0, len(named) - 1)
    low, high = max(0, low - 1), min(len(named) - 1, high + 1)
    shown = np.where(counts > 1e-9, counts, np.nan)[low : high + 1]
    axis.pcolormesh(_minutes(times, window), np.arange(low, high + 1), shown, cmap="Oranges", vmin=0)
    bounds = [float(series.labels["le"]) for _, series in named]
    ticks = range(low, high + 1)
    axis.set_yticks([each + 0.5 for each in ticks], [f"≤ {text_of(bounds[each], panel.unit)}" for each in ticks])


def _label_time(axis: Any, window: Window) -> None:
    axis.set_xlim(0, (window.end - window.start) / 60)
    axis.set_xlabel("minutes", fontsize=7, labelpad=1)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)


def _mark(axis: Any, marks: Mapping[str, float], window: Window) -> None:
    for name, began in marks.items():
        minute = (began - window.start) / 60
        axis.axvline(minute, color="tab:gray", lw=0.8, ls=":")
        inside = axis.get_xaxis_transform()
        axis.text(minute, 0.985, f" {name}", fontsize=6, color="tab:gray", transform=inside, va="top")


_DRAWN: dict[str, Callable[[Any, Panel, Named, Window], None]] = {
    "timeseries": _draw_lines,
    "stat": _draw_value,
    "heatmap": _draw_heatmap,
}
