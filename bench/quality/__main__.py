"""Every baseline and every plan at several budgets of cloud evaluations: `python -m bench.quality`.

The default run is small and says so; the published one is `--num-prompts 64 --num-seeds 2`. What a case made is kept in
`--folder`, so a run that was interrupted, or that names more `--methods`, goes on where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.machine import RESULTS
from bench.quality.cases import (
    EDGE_ONLY,
    GROUPS,
    Case,
    ablations,
    default_plan,
    published,
    searched,
)
from bench.quality.choose import Chooser
from bench.quality.figures import Accuracy
from bench.quality.publish import Published, measure, publish
from bench.quality.runner import Made, Runner
from diffusion.loading import load_model
from models import DEFAULT_GUIDANCE_SCALE, PAIR_DIR, PLANS_DIR, read_prompts
from models.data import cache_option
from orchestrator.plan import MAX_STEPS, parse_steps
from orchestrator.searched_plan import PlanFile, read_plan_file
from wire.messages import Plan

FOLDER = Path(__file__).resolve().parents[2] / "out" / "quality"
DISAGREEMENT_TOLERANCES = (0.02, 0.05, 0.1)
# Seeds of the report prompts are below, so that no noise serves both.
SEARCH_SEED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked for."""

    num_steps: int
    converged_steps: int
    budgets: tuple[int, ...]
    groups: tuple[str, ...]
    plans: PlanFile | None


@click.command()
@click.option("--pair", "pair_dir", type=click.Path(path_type=Path, exists=True), default=PAIR_DIR, help="The pair.")
@click.option("--num-prompts", type=click.IntRange(1), default=8, show_default=True, help="Report prompts.")
@click.option("--num-seeds", type=click.IntRange(1), default=1, show_default=True, help="Pictures of each prompt.")
@click.option("--search-prompts", type=click.IntRange(1), default=4, show_default=True, help="To choose parameters on.")
@click.option("--steps", type=click.IntRange(4, MAX_STEPS), default=50, show_default=True, help="Of all-cloud.")
@click.option(
    "--converged-steps", type=click.IntRange(4), default=500, show_default=True, help="Of the second reference."
)
@click.option("--guidance-scale", type=float, default=DEFAULT_GUIDANCE_SCALE, show_default=True)
@click.option("--budgets", default="5,8,10,12,15,17,21", show_default=True, help="Cloud calls to compare at.")
@click.option("--methods", default=",".join(GROUPS), show_default=True, help="Groups of the table; references always.")
@click.option(
    "--plans", "plans_path", type=click.Path(path_type=Path, dir_okay=False), help="Default: the bundled file."
)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Prompts run together.")
@click.option("--scorer/--no-scorer", "asks_scorer", default=True, help="It needs the icons, fetched the first time.")
@cache_option
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=FOLDER, help="What was made is kept."
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(
    pair_dir: Path,
    num_prompts: int,
    num_seeds: int,
    search_prompts: int,
    steps: int,
    converged_steps: int,
    guidance_scale: float,
    budgets: str,
    methods: str,
    plans_path: Path | None,
    batch_size: int,
    asks_scorer: bool,
    cache_dir: Path,
    folder: Path,
    output: Path,
) -> None:
    """Compare this project's plans with every baseline: errors to two references, pictures, accuracy, targets."""
    settings = _settings(steps, converged_steps, budgets, methods, plans_path)
    cloud, edge = (load_model(str(pair_dir / name)) for name in ("cloud", "edge"))

    def runner(prompts: list[str], seeds: list[int]) -> Runner:
        return Runner(cloud, edge, prompts, seeds, guidance_scale=guidance_scale, folder=folder, batch_size=batch_size)

    captions = read_prompts("report")[:num_prompts]
    report = runner(captions * num_seeds, [1000 * s + i for s in range(num_seeds) for i in range(len(captions))])
    on_search = read_prompts("search")[:search_prompts]
    search = runner(on_search, [SEARCH_SEED + i for i in range(len(on_search))])
    accuracy = Accuracy(pair_dir / "scorer", cache_dir) if asks_scorer else None
    cases = _cases(settings, search)
    made = _run(report, cases)
    if equal := _equal_time_case(settings, cases, made):
        cases.insert([case.name for case in cases].index(EDGE_ONLY) + 1, equal)
        made |= _run(report, [equal])
    lines, pictures = measure(report, cases, made, accuracy)
    about = Published(
        num_steps=steps,
        converged_steps=converged_steps,
        guidance_scale=guidance_scale,
        sheet_calls=default_plan(settings.plans).cloud_calls
        if settings.plans
        else settings.budgets[len(settings.budgets) // 2],
        scored=asks_scorer,
    )
    publish(about, report.prompts, lines, pictures, output)


def _settings(num_steps: int, converged_steps: int, budgets: str, methods: str, plans_path: Path | None) -> Settings:
    groups = tuple(methods.split(","))
    if unknown := set(groups) - set(GROUPS):
        raise click.UsageError(f"--methods: no {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    path = plans_path or PLANS_DIR / f"ddim-{num_steps}.json"
    try:
        calls = parse_steps(budgets)
        plans = read_plan_file(path) if {"searched", "ablations", "edge"} & set(groups) else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.UsageError(f"{error}: name a plan file with --plans, or methods that need none") from error
    if plans and plans.num_inference_steps != num_steps:
        raise click.UsageError(f"--plans: {path} is for {plans.num_inference_steps} steps, not {num_steps}")
    return Settings(
        num_steps=num_steps,
        converged_steps=converged_steps,
        budgets=tuple(each for each in calls if 2 <= each < num_steps),
        groups=groups,
        plans=plans,
    )


def _cases(settings: Settings, search: Runner) -> list[Case]:
    """Return every case of the groups asked for, with the references before them."""
    steps = settings.num_steps
    cases = [
        case for case in published(steps, settings.converged_steps) if case.group in ("all-cloud", *settings.groups)
    ]
    choosing = {"ecdiff-searched", "solvers", "on-dpmpp"} & set(settings.groups)
    if choosing:
        references = _run(search, cases[:2], "search prompts: ")
        reference, converged = references.values()
        with Console(stderr=True).status("choosing on search prompts") as status:
            chooser = Chooser(search, reference, converged, note=lambda name: status.update(f"choosing: {name}"))
            for group in GROUPS:
                if group in choosing:
                    cases += _chosen(group, chooser, settings)
    if settings.plans and "searched" in settings.groups:
        cases += searched(settings.plans)
    if settings.plans and "ablations" in settings.groups:
        cases += ablations(settings.plans, DISAGREEMENT_TOLERANCES)
    return sorted(cases, key=lambda case: GROUPS.index(case.group))


def _chosen(group: str, chooser: Chooser, settings: Settings) -> list[Case]:
    steps, budgets = settings.num_steps, settings.budgets
    fewer = budgets[1::3]  # the lesser rivals, at a few budgets
    match group:
        case "ecdiff-searched":
            return [
                *(case for budget in budgets for case in chooser.ecdiff(budget, steps, cloud_only=True)),
                *(case for budget in fewer for case in chooser.ecdiff(budget, steps, cloud_only=False)),
            ]
        case "solvers":
            return [
                *(case for budget in budgets for case in chooser.solver("dpmpp-2m", budget)),
                *(case for name in ("unipc", "ddim") for budget in fewer for case in chooser.solver(name, budget)),
            ]
    spacing = chooser.solver("dpmpp-2m", budgets[-1])[0].spacing
    counts = (2 * steps // 5, steps)
    return [case for budget in budgets for case in chooser.on_dpmpp(budget, counts, spacing)]


def _run(runner: Runner, cases: Sequence[Case], prefix: str = "") -> dict[str, Made]:
    """Return what each case makes, with a bar that knows about how much work is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    made = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        todo = [case for case in cases if not runner.is_made(case)]
        task = progress.add_task("", total=sum(case.rows_of_work for case in todo) * len(runner.prompts))
        for case in cases:
            progress.update(task, description=f"{prefix}{case.name}")
            work = case.rows_of_work if case in todo else 0
            made[case.name] = runner.run(case, partial(_advance, progress, task, work))
    return made


def _advance(progress: Progress, task: TaskID, work: int, num_rows: int) -> None:
    progress.advance(task, num_rows * work)


def _equal_time_case(settings: Settings, cases: Sequence[Case], made: dict[str, Made]) -> Case | None:
    """Return edge only with as many steps as fit into the time that the default plan takes, one prompt at a time."""
    if settings.plans is None or "edge" not in settings.groups:
        return None
    calls = default_plan(settings.plans).cloud_calls
    timed = [case for case in cases if case.group == "searched" and case.per_prompt]
    if not timed:
        return None
    nearest = min(timed, key=lambda case: abs((case.budget or 0) - calls))
    found = made[nearest.name]
    fitting = int(found.wall_seconds / len(found.latents) / found.edge_step_seconds)
    num_steps = max(1, min(fitting, MAX_STEPS))
    return Case(
        name=f"{EDGE_ONLY}, {num_steps} steps: equal time",
        group="edge",
        plan=Plan(num_inference_steps=num_steps, handoff_step=0),
    )


if __name__ == "__main__":
    main()
