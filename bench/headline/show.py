"""The tables and the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from bench.headline.claims import Claim
from bench.headline.figures import PARTS, Estimate, Quality, Times
from bench.machine import machine_line
from bench.network import LINKS

# Blue: the cloud's time. Orange: between them. Green: the edge's.
_COLOURS = {
    "connect": "#9e9ac8",
    "encode_prompt": "#c7e9c0",
    "cloud_queue": "#c6dbef",
    "cloud_compute": "#2171b5",
    "network": "#fdae6b",
    "handoff": "#e6550d",
    "edge_compute": "#238b45",
    "decode": "#74c476",
    "rest": "#bdbdbd",
}
_CONSOLE_WIDTH = 150


def print_quality(qualities: Sequence[Quality], title: str, scorer: str) -> None:
    """Print a line a variant."""
    table = _table(title, "mode", "cloud calls", "discarded", "edge steps", "handoff", "error to cloud", "top-1")
    for each in qualities:
        table.add_row(
            each.variant,
            _estimate(each.cloud_calls, "{:.3g}"),
            f"{each.discarded:.3g}",
            f"{each.edge_steps:.3g}",
            "" if each.handoff_steps is None else _steps(*each.handoff_steps),
            "0" if each.error is None else _estimate(each.error, "{:.4f}"),
            "" if each.top1 is None else _estimate(each.top1, "{:.1%}"),
        )
    console = Console(width=_CONSOLE_WIDTH)
    console.print(table)
    console.print(
        "Everywhere: 95 % intervals. discarded: of these, calls that the cloud made past the handoff.\n"
        "error: relative L2 of the final latents to mode cloud with the same seed, mean over prompts.\n"
        f"top-1: {scorer}.",
        highlight=False,
    )


def print_times(timings: Sequence[Times], title: str) -> None:
    """Print a line a variant and link."""
    table = _table(title, "link", "mode", "wall p50 s", "wall p95 s", "times faster than cloud", "cloud device s")
    for index, each in enumerate(timings):
        is_first = index == 0 or timings[index - 1].link != each.link
        if is_first and index:
            table.add_section()
        table.add_row(
            each.link if is_first else "",
            each.variant,
            *(_estimate(found, "{:.2f}") for found in (each.wall_p50, each.wall_p95, each.faster)),
            _estimate(each.cloud_seconds, "{:.3f}"),
        )
    console = Console(width=_CONSOLE_WIDTH)
    console.print(table)
    for link in dict.fromkeys(each.link for each in timings):
        console.print(f"{link}: {LINKS[link]}", highlight=False)
    console.print(
        "wall: from the call to the picture, models loaded, channel open. times faster: of mean wall times, runs in "
        "pairs.",
        highlight=False,
    )


def print_claims(claims: Sequence[Claim]) -> None:
    """Print whether each holds."""
    table = _table("The paper's claim as the floor: the whole interval counts", "mode", "", "found", "floor", "outcome")
    for index, each in enumerate(claims):
        is_first = index == 0 or claims[index - 1].variant != each.variant
        if is_first and index:
            table.add_section()
        table.add_row(
            each.variant if is_first else "",
            each.what,
            _estimate(each.found, "{:.3g}"),
            f"{'above' if each.strict else 'at least'} {each.limit:g}",
            "pass" if each.holds else "FAIL",
        )
    Console(width=_CONSOLE_WIDTH).print(table)


def draw(qualities: Sequence[Quality], timings: Sequence[Times], what: str, path: Path) -> None:
    """Draw where the time goes on each link, beside what the pictures are worth; a bar a variant."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    links = list(dict.fromkeys(each.link for each in timings))
    num_columns = (len(links) + 1) // 2
    figure, grid = pyplot.subplots(
        2,
        num_columns + 1,
        figsize=(10.8, 6.4),
        width_ratios=[*(1.4 for _ in range(num_columns)), 1.0],
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    over_links, (of_error, of_top1) = grid[:, :-1].flat, grid[:, -1]
    longest = max(sum(each.parts.values()) for each in timings)
    for axis, link in zip(over_links, links, strict=False):
        _draw_link(axis, [each for each in timings if each.link == link])
        axis.set(
            title=f"{link}: {LINKS[link]}",
            xlabel="seconds to the picture; times faster than cloud",
            xlim=(0, 1.15 * longest),
        )
    _draw_estimates(of_error, [each.error or Estimate(value=0, low=0, high=0) for each in qualities])
    of_error.set(title="error to mode cloud", xlabel="relative L2 of final latents, 95 % interval")
    if scored := [each.top1 for each in qualities if each.top1 is not None]:
        _draw_estimates(of_top1, [_percent(each) for each in scored])
        of_top1.set(title="top-1 of the scorer", xlabel="% of pictures, 95 % interval")
    for axis in grid.flat:
        axis.title.set_fontsize(9)
        axis.xaxis.label.set_fontsize(8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_visible(bool(axis.get_title()))
    grid[0, 0].set_yticks(range(len(qualities)), [each.variant for each in qualities])
    grid[0, 0].invert_yaxis()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    figure.suptitle(f"{what} ({machine_line()})", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_parts(axis: Any, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> list[float]:
    """Draw the seconds of each name as a stacked bar a row; return where each bar ends."""
    ends = [0.0] * len(rows)
    for name in names:
        seconds = [parts[name] for parts in rows]
        axis.barh(range(len(rows)), seconds, left=ends, color=_COLOURS[name], label=name.replace("_", " "))
        ends = [end + more for end, more in zip(ends, seconds, strict=True)]
    return ends


def _draw_link(axis: Any, timings: Sequence[Times]) -> None:
    """Draw a stacked bar a variant, and how many times faster it is than cloud."""
    ends = draw_parts(axis, PARTS, [each.parts for each in timings])
    for row, (each, end) in enumerate(zip(timings, ends, strict=True)):
        axis.annotate(
            "" if each.variant == "cloud" else f"{each.faster.value:.1f}x",
            (end, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _draw_estimates(axis: Any, found: Sequence[Estimate]) -> None:
    rows = range(len(found))
    axis.hlines(rows, [each.low for each in found], [each.high for each in found], color="black", linewidth=1.2)
    axis.plot([each.value for each in found], rows, "o", color="black", markersize=5)


def _percent(share: Estimate) -> Estimate:
    return Estimate(value=100 * share.value, low=100 * share.low, high=100 * share.high)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        is_text = name in ("link", "mode", "")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    return table


def _estimate(found: Estimate, form: str) -> str:
    return f"{form} ({form} to {form})".format(found.value, found.low, found.high)


def _steps(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"
