"""The table and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import matplotlib
from rich.console import Console
from rich.table import Table

from bench.deadline.figures import BOUND_RATIO, grouped, medians
from bench.deadline.runs import Run
from bench.intervals import quantile_interval
from bench.machine import machine_line
from bench.network import LINKS


def show(runs: Sequence[Run]) -> float:
    """Print the tables; return the median error over all runs."""
    title = f"predicted against measured latency, medians; {machine_line()}"
    table = Table(title=title, title_justify="left")
    for name in ("link", "mode", "cloud calls", "predicted s", "measured s", "error", "deadline s", "met"):
        table.add_column(name, justify="left" if name in ("link", "mode") else "right")
    last_link = ""
    for (link, variant), found in grouped(runs).items():
        if last_link not in ("", link):
            table.add_section()
        row = medians(found)
        deadline = row["deadline_seconds"]
        table.add_row(
            "" if link == last_link else link,
            variant,
            f"{row['cloud_calls']:.0f}",
            f"{row['predicted_seconds']:.3f}",
            f"{row['measured_seconds']:.3f}",
            f"{100 * row['error_ratio']:.1f} %",
            "" if deadline is None else f"{deadline:.3f}",
            "" if deadline is None else f"{row['deadlines_met']} of {row['num_runs']}",
        )
        last_link = link
    Console(width=120).print(table)
    error_ratios = [run.error_ratio for run in runs]
    low, high = quantile_interval(error_ratios, 0.5)
    middle = statistics.median(error_ratios)
    click.echo(
        f"error: median {100 * middle:.1f} % ({100 * low:.1f}-{100 * high:.1f}), bound {100 * BOUND_RATIO:g} %; "
        f"within the bound {sum(each <= BOUND_RATIO for each in error_ratios)} of {len(runs)} runs"
    )
    return middle


def plot(runs: Sequence[Run], path: Path) -> None:
    """Plot predicted against measured latency."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 6.4), layout="constrained")
    seconds = [each for run in runs for each in (run.predicted_seconds, run.measured_seconds)]
    ends = [0.85 * min(seconds), 1.15 * max(seconds)]
    low, high = ([factor * end for end in ends] for factor in (1 - BOUND_RATIO, 1 + BOUND_RATIO))
    axis.fill_between(ends, low, high, color="0.9", label="within 10 %")
    axis.plot(ends, ends, color="0.6", linewidth=1)
    markers = {"cloud": "s", "edge": "v", "split": "D", "ecdiff": "^", "adaptive": "o", "deadline": "x"}
    for number, link in enumerate(LINKS):
        for kind, marker in markers.items():
            shown = [run for run in runs if run.link == link and run.variant.split(",")[0].split(" ")[0] == kind]
            measured, predicted = [run.measured_seconds for run in shown], [run.predicted_seconds for run in shown]
            axis.scatter(measured, predicted, marker=marker, color=f"C{number}", s=28, alpha=0.7, linewidths=1)
    handles = [
        *(axis.scatter([], [], marker="o", color=f"C{number}", label=link) for number, link in enumerate(LINKS)),
        *(axis.scatter([], [], marker=marker, color="0.3", label=kind) for kind, marker in markers.items()),
    ]
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, s", ylabel="predicted, s")
    ticks = [tick for tick in (0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8, 12) if ends[0] < tick < ends[1]]
    for each in (axis.xaxis, axis.yaxis):
        each.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        each.set_ticks([], minor=True)
    axis.legend(handles=handles, fontsize=8, ncols=2, loc="upper left")
    middle = statistics.median(run.error_ratio for run in runs)
    axis.set_title(
        f"Prompt to picture: median error of the prediction {100 * middle:.1f} %\n{machine_line()}; grey: within 10 %",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
