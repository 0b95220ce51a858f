"""The tables and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from bench.headline.show import draw_parts
from bench.links.figures import BOUND_ROUND_TRIPS, NARROW, PARTS, DecisionAge, Freshness, Split
from bench.machine import machine_line
from bench.network import LINKS

_WIDTH = 160
_CREDITS = {True: "credits", False: "no credits"}


def print_splits(found: Sequence[Split]) -> None:
    """Print where the time goes, in milliseconds."""
    title = f"time to the picture, mean ms; {machine_line()}"
    table = _table(title, "link", "mode", *(part.replace("_", " ") for part in PARTS), "total", "faster than cloud")
    for index, each in enumerate(found):
        is_first = index == 0 or found[index - 1].link != each.link
        if is_first and index:
            table.add_section()
        table.add_row(
            each.link if is_first else "",
            each.variant,
            *(_ms(each.parts[part]) for part in PARTS),
            _ms(each.total_seconds),
            f"{each.faster:.2f}x",
        )
    console = Console(width=_WIDTH)
    console.print(table)
    for link in dict.fromkeys(each.link for each in found):
        console.print(f"{link}: {LINKS[link]}", highlight=False)


def print_freshness(found: Sequence[Freshness]) -> None:
    """Print how old latents arrive, with credits and without."""
    table = _table(
        "latents of every step, from the end of the step to their arrival; and pings in the same stream, ms",
        *(
            "link",
            "latents",
            "",
            "arrived",
            "step",
            "age p50",
            "age max",
            "the last ones",
            "ping p50",
            "ping max",
            "rtt",
        ),
        "age max, of credits'",
    )
    with_credits = {(each.size, each.link): each for each in found if each.with_credits}
    for index, each in enumerate(found):
        if index and found[index - 1].size != each.size:
            table.add_section()
        seconds = (
            *(each.step_seconds, each.age_p50_seconds, each.age_max_seconds, each.last_age_seconds),
            *(each.ping_p50_seconds, each.ping_max_seconds, each.rtt_seconds),
        )
        table.add_row(
            *(each.link, each.size, _CREDITS[each.with_credits], str(each.num_latents)),
            *(_ms(value) for value in seconds),
            f"{each.age_max_seconds / with_credits[each.size, each.link].age_max_seconds:.1f}x",
        )
    Console(width=_WIDTH).print(table)


def print_ages(found: Sequence[DecisionAge]) -> None:
    """Print how old the oldest was that drove a decision."""
    title = f"the oldest that drove a decision; the bar: {BOUND_ROUND_TRIPS:g} round trips, one picture a tensor"
    table = _table(title, "link", "mode", "pictures", "decision", "runs", "age ms", "rtt ms", "round trips")
    for index, each in enumerate(found):
        if index and found[index - 1].link != each.link:
            table.add_section()
        table.add_row(
            *(each.link, each.variant, str(each.num_images), each.decision, str(each.num_runs)),
            *(_ms(each.age_seconds), _ms(each.rtt_seconds), f"{each.round_trips:.2f}"),
        )
    Console(width=_WIDTH).print(table)


def draw(parts: Sequence[Split], fresh: Sequence[Freshness], ages: Sequence[DecisionAge], path: Path) -> None:
    """Draw where the time goes, how old latents get, and how old those were that drove a decision."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 5.2), width_ratios=(1.4, 1, 1), layout="constrained")
    _draw_splits(axes[0], parts)
    _draw_freshness(axes[1], fresh)
    _draw_ages(axes[2], [each for each in ages if each.link == NARROW])
    for axis in axes:
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_fontsize(8)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    figure.suptitle(f"Links ({machine_line()})", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_splits(axis: Any, parts: Sequence[Split]) -> None:
    draw_parts(axis, PARTS, [each.parts for each in parts])
    axis.set_yticks(range(len(parts)), [f"{each.link}, {each.variant}" for each in parts])
    axis.set(title="where the time goes", xlabel="seconds to the picture, first contact included")


def _draw_freshness(axis: Any, fresh: Sequence[Freshness]) -> None:
    for row, each in enumerate(fresh):
        colour = "C0" if each.with_credits else "C3"
        axis.plot([each.age_p50_seconds, each.age_max_seconds], [row, row], color=colour, linewidth=2)
        axis.plot(each.age_max_seconds, row, "o", color=colour, markersize=4)
        axis.plot(each.ping_max_seconds, row, "x", color="black", markersize=5)
    labels = [f"{each.link}, {each.size}, {_CREDITS[each.with_credits]}" for each in fresh]
    axis.set_yticks(range(len(fresh)), labels)
    axis.set(title="age at arrival, median to oldest; x: slowest ping", xlabel="seconds", xscale="log")
    axis.xaxis.set_major_formatter(lambda seconds, position: f"{seconds:g}")
    axis.xaxis.set_minor_formatter(lambda seconds, position: "")


def _draw_ages(axis: Any, ages: Sequence[DecisionAge]) -> None:
    rows = range(len(ages))
    axis.barh(
        rows, [each.round_trips for each in ages], color=["C0" if each.num_images == 1 else "0.7" for each in ages]
    )
    labels = [f"{each.variant}, {each.num_images}: {each.decision}" for each in ages]
    axis.set_yticks(rows, labels, fontsize=6)
    axis.axvline(BOUND_ROUND_TRIPS, color="black", linewidth=1)
    axis.set(title=f"{NARROW}: oldest that drove a decision", xlabel="round trips; grey: 4 and 8 pictures a tensor")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        is_text = name in ("link", "mode", "latents", "", "decision")
        table.add_column(name, justify="left" if is_text else "right")
    return table
