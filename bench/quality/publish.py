"""From what was made to what is published: figures, tables, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from bench.machine import write_results
from bench.quality import show
from bench.quality.cases import ALL_CLOUD, EDGE_ONLY, PUBLISHED_CLOUD, PUBLISHED_HYBRID, Case
from bench.quality.figures import Accuracy, Figures, figures
from bench.quality.runner import Made, Runner
from bench.quality.targets import verdicts

PUBLISHED_PROMPTS, PUBLISHED_SEEDS = 64, 2
SHEET_COLUMNS = 8
SCORER = "share of pictures that the bundled scorer (models/scorer.py) names right, among all captions of their style"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the tables and files say of the run as a whole.

    Attributes:
        num_steps: Of the first reference.
        converged_steps: Of the second.
        guidance_scale: Of every case.
        sheet_calls: Cloud calls that the contact sheet compares at.
        scored: Whether the scorer was asked.
    """

    num_steps: int
    converged_steps: int
    guidance_scale: float
    sheet_calls: int
    scored: bool


def measure(
    runner: Runner, cases: Sequence[Case], made: dict[str, Made], accuracy: Accuracy | None
) -> tuple[list[Figures], dict[str, NDArray[np.uint8]]]:
    """Return every case's line, and its first pictures for the sheet.

    Args:
        runner: What ran them.
        cases: The two references first.
        made: By the case's name.
        accuracy: The scorer, if it is to be asked.
    """
    reference, converged = made[cases[0].name], made[cases[1].name]
    decoded = runner.decode(reference)
    single_seconds = runner.single_step_seconds() * cases[0].plan.num_inference_steps * len(decoded)
    lines, pictures = [], {}
    for case in cases:
        found = runner.decode(made[case.name])
        pictures[case.name] = found[:SHEET_COLUMNS]
        lines.append(
            figures(
                case,
                made[case.name],
                prompts=runner.prompts,
                reference=reference,
                converged=converged,
                pictures=found,
                reference_pictures=decoded,
                accuracy=accuracy,
                full_seconds=single_seconds if case.per_prompt else reference.cloud_seconds,
            )
        )
    return lines, pictures


def publish(
    about: Published,
    prompts: Sequence[str],
    lines: Sequence[Figures],
    pictures: dict[str, NDArray[np.uint8]],
    output: Path,
) -> None:
    """Print the table and the targets; write JSON, plot and contact sheet."""
    captions = list(dict.fromkeys(prompts))
    num_seeds = len(prompts) // len(captions)
    what = f"{len(captions)} report prompts x {num_seeds} seed(s), DDIM {about.num_steps}, "
    what += f"guidance {about.guidance_scale:g}"
    if len(captions) < PUBLISHED_PROMPTS or num_seeds < PUBLISHED_SEEDS:
        what += f"; smaller than a published run ({PUBLISHED_PROMPTS} x {PUBLISHED_SEEDS})"
    show.print_table(lines, what, SCORER if about.scored else None)
    reached = verdicts(lines, prompts)
    show.print_verdicts(reached)
    results: dict[str, Any] = {
        "what": what,
        "settings": {
            "num_prompts": len(captions),
            "num_seeds": num_seeds,
            "num_inference_steps": about.num_steps,
            "converged_steps": about.converged_steps,
            "guidance_scale": about.guidance_scale,
            "threads": torch.get_num_threads(),
            "scorer": SCORER if about.scored else None,
        },
        "targets": [vars(each) | {"outcome": each.outcome} for each in reached],
        "prompts": list(prompts),
        "methods": [line.as_json() for line in lines],
    }
    path = write_results("quality", results, output)
    plot, sheet = path.with_suffix(".png"), path.with_name("quality_sheet.png")
    show.draw_plot(lines, what, about.converged_steps, plot)
    shown = captions[:SHEET_COLUMNS]
    rows = [(line, pictures[line.name][: len(shown)]) for line in sheet_lines(lines, about.sheet_calls)]
    show.draw_sheet(shown, rows, what, sheet)
    click.echo(f"wrote {path}, {plot} and {sheet}")


def sheet_lines(lines: Sequence[Figures], calls: int) -> list[Figures]:
    """Return the baselines without a budget, and of every other series the line nearest to `calls`."""
    always = (ALL_CLOUD, EDGE_ONLY, PUBLISHED_HYBRID, PUBLISHED_CLOUD)
    chosen = [line for line in lines if line.name in always or line.group == "split"]
    series: dict[tuple[str, str, bool, bool], list[Figures]] = {}
    for line in lines:
        if line.budget is not None and line.group != "ablations":
            kind = (line.group, line.scheduler.split()[0], line.edge_steps > 0, line.name.endswith("agreement"))
            series.setdefault(kind, []).append(line)
    return chosen + [min(each, key=lambda line: abs((line.budget or 0) - calls)) for each in series.values()]
