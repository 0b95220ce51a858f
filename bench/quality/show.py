"""The table, the Pareto plot and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.machine import facts
from bench.quality.figures import Error, Figures
from bench.quality.targets import Verdict

# Group -> what the legend says, colour, marker. The rivals are grey to orange, this project's own blue to green.
LOOKS: dict[str, tuple[str, str, str]] = {
    "all-cloud": ("all-cloud", "#000000", ""),
    "edge": ("edge only", "#7f7f7f", "X"),
    "split": ("Hybrid SD split", "#8c564b", "v"),
    "ecdiff": ("EC-Diff, published", "#d62728", "s"),
    "ecdiff-searched": ("EC-Diff, searched", "#ff7f0e", "s"),
    "dpmpp-2m": ("DPM-Solver++ 2M", "#9467bd", "D"),
    "unipc": ("UniPC", "#e377c2", "D"),
    "ddim": ("DDIM", "#bcbd22", "D"),
    "cloud only": ("ours: cloud only", "#17becf", "o"),
    "hybrid": ("ours: with the edge", "#2ca02c", "o"),
    "agreement": ("ours: with the edge, handoff by agreement", "#006400", "^"),
    "on-dpmpp": ("ours on DPM-Solver++ 2M", "#1f77b4", "P"),
}
MAX_CALLS = 100  # the converged reference is no point of the plot
JOINED = ("dpmpp-2m", "unipc", "ddim", "cloud only", "hybrid", "on-dpmpp")


def print_table(lines: Sequence[Figures], title: str, scorer: str | None) -> None:
    """Print a line a case, in the order given."""
    table = Table(title=title, title_justify="left")
    for name in ("method", "scheduler"):
        table.add_column(name, no_wrap=True)
    for name in (
        "calls",
        "edge",
        "error to all-cloud",
        "error to converged",
        "PSNR",
        "top-1",
        "cloud s",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for index, line in enumerate(lines):
        if index and line.group != lines[index - 1].group:
            table.add_section()
        table.add_row(
            line.name,
            line.scheduler,
            f"{line.cloud_calls:.3g}",
            f"{line.edge_steps:.3g}",
            _error(line.fidelity),
            _error(line.converged),
            "same" if line.psnr_db is None else f"{line.psnr_db:.1f}",
            "" if line.top1 is None else f"{line.top1:.0%}",
            f"{line.cloud_seconds_share:.0%}",
        )
    console = Console(width=170)
    console.print(table)
    console.print(
        "calls: evaluations of the cloud model; edge: steps on the edge model's own prediction; "
        "error: relative L2 of final latents, mean over prompts with its 95 % bootstrap interval;\n"
        "PSNR: dB, to the all-cloud picture; cloud s: the large model's seconds, of all-cloud's."
        + (f"\ntop-1: {scorer}." if scorer else "\nThe scorer was not asked."),
        highlight=False,
    )


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print the targets."""
    table = Table(title="To reach", title_justify="left")
    for name, wrap in (("", False), ("target", True), ("found", True)):
        table.add_column(name, no_wrap=not wrap)
    for name in ("limit", "aim", "value", "95 %", "outcome"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in verdicts:
        table.add_row(
            each.number,
            each.target,
            each.found,
            f"{each.limit:g}",
            "" if each.aim is None else f"{each.aim:g}",
            "" if each.value is None else f"{each.value:.3g}",
            "" if each.interval is None else "{:.3g}-{:.3g}".format(*each.interval),
            each.outcome,
        )
    Console(width=170).print(table)


def draw_plot(lines: Sequence[Figures], what: str, converged_steps: int, path: Path) -> None:
    """Draw cloud calls against error, a panel a reference."""
    pyplot = _pyplot()
    shown = [line for line in lines if _look(line) in LOOKS and line.cloud_calls <= MAX_CALLS]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    panels = (
        (axes[0], "fidelity", "to all-cloud, same scheduler and steps"),
        (axes[1], "converged", f"to all-cloud, DDIM with {converged_steps} steps"),
    )
    for axis, attribute, title in panels:
        for look in dict.fromkeys(_look(line) for line in shown):
            same = [line for line in shown if _look(line) == look and getattr(line, attribute).mean > 0.0]
            if same:
                _draw_series(axis, look, sorted(same, key=lambda line: line.cloud_calls), attribute)
        axis.set(yscale="log", title=title, xlabel="evaluations of the cloud model a picture")
        axis.grid(which="both", alpha=0.25)
        axis.set_xlim(-1, 2 + max(line.cloud_calls for line in shown if line.group != "all-cloud"))
    axes[0].set_ylabel("relative L2 error of the final latents (95 % interval)")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    machine = facts()
    figure.suptitle(f"Error for cloud evaluations: {what} ({machine['cpu']}, {machine['date']})", fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_sheet(
    captions: Sequence[str], rows: Sequence[tuple[Figures, NDArray[np.uint8]]], what: str, path: Path
) -> None:
    """Draw the same prompts, one a column, as each method makes them, one a row.

    Args:
        captions: Of the columns.
        rows: A method's line, and its pictures `[columns, H, W, 3]`.
        what: For the title.
        path: Where to.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        len(rows), len(captions), figsize=(1.2 * len(captions) + 4.5, 1.22 * len(rows) + 0.9), layout="constrained"
    )
    axes = np.asarray(axes).reshape(len(rows), len(captions))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for line_axes, (line, pictures) in zip(axes, rows, strict=True):
        error = "reference" if not line.fidelity.mean else f"error {line.fidelity.mean:.3f}"
        text = f"{line.name}\n{line.cloud_calls:.3g} cloud calls, {line.edge_steps:.3g} edge steps\n{error}"
        line_axes[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
        for axis, picture in zip(line_axes, pictures, strict=True):
            axis.imshow(picture, interpolation="lanczos")
    for axis, caption in zip(axes[0], captions, strict=True):
        axis.set_title(caption.removesuffix(" style").replace(", ", "\n"), fontsize=8)
    figure.suptitle(what, fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _pyplot() -> Any:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _look(line: Figures) -> str:
    """Return a key of `LOOKS`; no such key for what the plot leaves out."""
    if line.group == "solvers":
        return line.scheduler.split()[0]
    if line.group == "searched":
        return "agreement" if line.name.endswith("agreement") else "hybrid" if line.edge_steps else "cloud only"
    return line.group


def _draw_series(axis: Any, look: str, lines: Sequence[Figures], attribute: str) -> None:
    """Draw a point a line, and where the series is joined a way through the best of each number of calls."""
    label, colour, marker = LOOKS[look]
    if look == "all-cloud":
        axis.axhline(getattr(lines[0], attribute).mean, color=colour, linestyle=":", linewidth=1.2)
        label = f"{label}, {lines[0].cloud_calls:.0f} calls"
        axis.plot([], [], color=colour, linestyle=":", label=label)
        return
    errors: list[Error] = [getattr(line, attribute) for line in lines]
    calls, means = np.array([line.cloud_calls for line in lines]), np.array([error.mean for error in errors])
    reach = [means - [error.low for error in errors], [error.high for error in errors] - means]
    axis.errorbar(
        calls,
        means,
        yerr=np.abs(reach),
        fmt=marker,
        color=colour,
        markersize=6,
        capsize=2,
        elinewidth=0.8,
        label=label,
        zorder=4 if look == "ecdiff" else 3,  # the searched one may be the published one
    )
    if look in JOINED:
        best = [(each, means[calls == each].min()) for each in sorted(set(calls.tolist()))]
        axis.plot(*zip(*best, strict=True), color=colour, linewidth=1)


def _error(error: Error) -> str:
    return f"{error.mean:.4f} ({error.low:.4f}-{error.high:.4f})" if error.mean else "0"
