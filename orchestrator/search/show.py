"""What a search shows: its progress, a table, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from orchestrator.choice import choose_plan
from orchestrator.search.pareto import earliest_under
from orchestrator.search.results import Baseline
from orchestrator.search.run import Findings
from orchestrator.searched_plan import PlanFile, SearchedPlan

_WIDTH = 130


class ProgressBars:
    """Progress of each phase with the time that is left of it, on stderr."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, phase: str, total: int) -> None:
        """Show another bar; the one before is done."""
        self._finish()
        self._task = self._bars.add_task(phase, total=total)

    def advance(self) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task)

    def _finish(self) -> None:
        if self._task is not None:
            total = next(each.total for each in self._bars.tasks if each.id == self._task)
            self._bars.update(self._task, completed=total)


def default_plan(plan_file: PlanFile) -> SearchedPlan:
    """Return the plan that a generation runs where its user bounds nothing."""
    return choose_plan(plan_file).searched


def print_findings(plan_file: PlanFile, findings: Findings, baselines: Sequence[Baseline], max_error: float) -> None:
    """Print the Pareto set, what it is compared with, and how well the screen and the scale tell errors apart."""
    title = (
        f"{plan_file.scheduler}, {plan_file.num_inference_steps} steps, guidance {plan_file.guidance_scale:g}, "
        f"{len(plan_file.prompts)} prompts"
    )
    table = Table(title=title, title_justify="left")
    for name in ("plan", "calls", "corrections", "handoff", "edge steps", "predictor", "residual", "error", "95 %"):
        table.add_column(name, justify="left" if name in ("plan", "predictor", "residual") else "right", no_wrap=True)
    default = default_plan(plan_file)
    for plan in plan_file.plans:
        corrections = sum(i >= plan.handoff_step for i in plan.correction_steps)
        parted = plan.handoff_step < plan_file.num_inference_steps
        table.add_row(
            ("edge finishes" if parted else "cloud only") + (" *" if plan is default else ""),
            str(plan.cloud_calls),
            str(corrections) if parted else "",
            str(plan.handoff_step) if parted else "",
            str(plan.edge_steps) if parted else "",
            plan.predictor,
            plan.residual or "",
            f"{plan.error:.4f}",
            "{:.4f}-{:.4f}".format(*plan.error_interval),
        )
    table.add_section()
    for each in baselines:
        handoff = "" if each.handoff_step == plan_file.num_inference_steps else str(each.handoff_step)
        interval = "{:.4f}-{:.4f}".format(*each.interval)
        table.add_row(each.name, str(each.cloud_calls), "", handoff, "", "", "", f"{each.error:.4f}", interval)
    console = Console(width=_WIDTH)
    console.print(table)
    for line in _lines(plan_file, findings, max_error):
        console.print(line, highlight=False)


def _lines(plan_file: PlanFile, findings: Findings, max_error: float) -> list[str]:
    lines = [
        f"* what a generation runs by default (tolerance {plan_file.default_tolerance:g}); calls include corrections"
    ]
    if findings.ranking is not None:
        lines.append(
            f"screen against closed loop: rank correlation {findings.ranking:.3f} over "
            f"{len(findings.confirmed)} candidates"
        )
    if findings.scale:
        lines.append(
            f"a prompt's scale against its error: rank correlation {fmean(findings.scale):.2f} in the mean of "
            f"{len(findings.scale)} handoffs, {min(findings.scale):.2f} to {max(findings.scale):.2f}"
        )
    parted = [each for each in findings.confirmed if each.candidate.handoff_step < plan_file.num_inference_steps]
    earliest = earliest_under(parted, max_error)
    if earliest:
        shown = ", ".join(
            f"{calls} calls: {each.candidate.handoff_step} ({each.error:.3f})" for calls, each in earliest.items()
        )
        lines.append(f"earliest handoff within {max_error:g}, and its error: {shown}")
    if findings.num_left_out:
        lines.append(f"there was no time to run {findings.num_left_out} candidates")
    return lines


def draw(plan_file: PlanFile, baselines: Sequence[Baseline], output: Path) -> list[Path]:
    """Draw the Pareto sets and the measured curves beside the plan file; return the files, none without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        click.echo("no plot: matplotlib is missing, install the extra `bench`", err=True)
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (errors, curves) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(3, 2))
    _draw_errors(errors, plan_file, baselines)
    _draw_curves(curves, plan_file)
    files = [output.with_suffix(".png"), output.with_suffix(".svg")]
    # No date in them: the same search gives the same files.
    figure.savefig(files[0], dpi=110, metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": "ecdiff", "svg.fonttype": "none"}):
        figure.savefig(files[1], metadata={"Date": None})
    pyplot.close(figure)
    return files


def _draw_errors(axis: Any, plan_file: PlanFile, baselines: Sequence[Baseline]) -> None:
    for parted, marker, label in ((False, "o-", "cloud only"), (True, "s", "edge finishes")):
        plans = [each for each in plan_file.plans if (each.handoff_step < plan_file.num_inference_steps) == parted]
        if not plans:
            continue
        below = [max(each.error - each.error_interval[0], 0.0) for each in plans]
        above = [max(each.error_interval[1] - each.error, 0.0) for each in plans]
        axis.errorbar(
            [each.cloud_calls for each in plans],
            [each.error for each in plans],
            yerr=[below, above],
            fmt=marker,
            capsize=2,
            markersize=5,
            linewidth=1,
            color="tab:orange" if parted else "tab:blue",
            label=f"searched, {label}",
        )
    middle = max(each.cloud_calls for each in baselines) / 2
    for each in baselines:
        reach = [[max(each.error - each.interval[0], 0.0)], [max(each.interval[1] - each.error, 0.0)]]
        axis.errorbar([each.cloud_calls], [each.error], yerr=reach, fmt="x", capsize=2, color="tab:gray")
        parted = 0 < each.handoff_step < plan_file.num_inference_steps
        right = each.cloud_calls > middle
        axis.annotate(
            f"{each.name}, handoff {each.handoff_step}" if parted else each.name,
            (each.cloud_calls, each.error),
            textcoords="offset points",
            xytext=(-6 if right else 6, 4),
            ha="right" if right else "left",
            fontsize=8,
        )
    axis.axhline(plan_file.default_tolerance, color="tab:green", linewidth=0.8, linestyle=":", label="tolerance")
    axis.set(
        yscale="log",
        xlabel="cloud calls, corrections included",
        ylabel="relative L2 of the final latents to all-cloud",
        title=f"{plan_file.scheduler}, {plan_file.num_inference_steps} steps, {len(plan_file.prompts)} search prompts, "
        "95 % intervals",
    )
    axis.title.set_fontsize(10)
    axis.grid(True, which="both", linewidth=0.3)
    axis.legend(fontsize=8)


def _draw_curves(axis: Any, plan_file: PlanFile) -> None:
    steps = range(plan_file.num_inference_steps)
    axis.plot(steps, plan_file.disagreement, color="tab:red", label="q: |edge - cloud| / |cloud|")
    axis.set(xlabel="step", ylabel="q", ylim=(0, 1.4 * max(plan_file.disagreement)), title="the measured curves")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.title.set_fontsize(10)
    other = axis.twinx()
    other.plot(steps, plan_file.sensitivity, color="tab:purple", label="sensitivity c")
    other.set(ylabel="c: latents moved per prediction", ylim=(0, None))
    default = default_plan(plan_file)
    calls = [i for i in default.real_steps if i < default.handoff_step]
    axis.plot(
        calls,
        [0.0] * len(calls),
        "^",
        color="black",
        markersize=6,
        clip_on=False,
        label=f"calls of the plan of {default.cloud_calls}",
    )
    if default.correction_steps:
        axis.plot(
            default.correction_steps,
            [0.0] * len(default.correction_steps),
            "^",
            color="black",
            markersize=6,
            fillstyle="none",
            clip_on=False,
            label="its corrections",
        )
    lines = [*axis.get_lines(), *other.get_lines()]
    axis.legend(lines, [each.get_label() for each in lines], fontsize=8, loc="upper left")
