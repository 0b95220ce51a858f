"""`orchestrator search`: options in, plan file out."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffusion.scheduler_config import SCHEDULERS
from orchestrator.plan import DEFAULT_NUM_INFERENCE_STEPS

if TYPE_CHECKING:
    from orchestrator.in_process import InProcessPair

# A share of 50 steps; the step counts of others are scaled.
_EDGE_STEPS_RATIO = 0.2
_MAX_CALLS_RATIO = 0.42
_MIN_CALLS, _FEW_STEPS_MAX_CALLS, _HYBRID_MAX_CALLS = 4, 12, 12
_MIN_PROMPTS = 2


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The command line, read."""

    cloud_model: str | None
    edge_model: str | None
    output: Path
    prompts: Path | None
    num_prompts: int
    seed: int
    scheduler: str | None
    num_inference_steps: int
    guidance_scale: float | None
    max_error: float
    tolerance: float
    min_edge_steps: int | None
    max_cloud_calls: int | None
    rounds: int
    confirm: int
    max_minutes: float | None
    device: str
    dtype: str


@click.command()
@click.option("--cloud-model", metavar="PATH_OR_ID", help="The large model [default: the bundled one].")
@click.option("--edge-model", metavar="PATH_OR_ID", help="The small model [default: the bundled one].")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The plan file.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Search prompts, one a line [default: models/prompts/search.txt]. Report on others.",
)
@click.option("--num-prompts", type=click.IntRange(_MIN_PROMPTS), default=12, show_default=True, help="The first N.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first prompt; then one up.")
@click.option("--scheduler", type=click.Choice(SCHEDULERS), help="[default: that of the cloud model's family]")
@click.option("--num-inference-steps", type=int, default=DEFAULT_NUM_INFERENCE_STEPS, show_default=True)
@click.option("--guidance-scale", type=click.FloatRange(0), help="[default: that of the bundled pair]")
@click.option(
    "--max-error",
    type=click.FloatRange(0, min_open=True),
    default=0.25,
    show_default=True,
    help="Worse plans are not kept: relative L2 of the final latents to all-cloud.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="The error that the plan file allows where its user names none.",
)
@click.option("--min-edge-steps", type=int, help="Of a plan with a handoff [default: a fifth of the steps].")
@click.option("--max-cloud-calls", type=int, help="[default: 21 of 50, at least 12]")
@click.option(
    "--rounds", type=click.IntRange(1), default=1, show_default=True, help="Screens, each with a better look."
)
@click.option("--confirm", type=click.IntRange(1), default=2, show_default=True, help="Runs per call count and stage.")
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="No new closed-loop run after that.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, float16 or bfloat16.")
def search(**options: Any) -> None:
    """Search plans for a pair of models: where to spend cloud calls, and when to hand off.

    Stage 1 places the calls of a cloud that never hands off, stage 2 those of plans that the edge finishes. Both
    screen thousands of candidates without running a network, and run the best ones on the search prompts.

    Writes the plan file and, beside it, a plot (PNG and SVG). An interrupted search goes on where it was when it is
    started again with the same options: what was measured stands in OUTPUT.partial.

    With the defaults the bundled pair takes five minutes on two cores. More time buys: --num-prompts, narrower
    intervals and plans that fit other prompts better; --rounds and --confirm, a last few per cent of error at few
    calls.

    Example: orchestrator search -o plans/ddim-50.json
    """
    read = SearchOptions(**options)
    try:
        _search(read)
    except KeyboardInterrupt:
        partial = partial_path(read.output)
        resumes = f"; the same command goes on from {partial}" if partial.exists() else ""
        click.echo(f"error: interrupted{resumes}", err=True)
        raise click.Abort from None
    except OSError as error:
        raise click.ClickException(str(error)) from error


def partial_path(output: Path) -> Path:
    """Return where an unfinished search keeps its results."""
    return output.with_name(f"{output.name}.partial")


def read_search_prompts(options: SearchOptions) -> list[str]:
    """Return the first prompts of the list.

    Raises:
        ValueError: If there are too few.
    """
    from models import PROMPTS_DIR

    path = options.prompts or PROMPTS_DIR / "search.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if len(prompts) < options.num_prompts:
        raise ValueError(
            f"{path} has {len(prompts)} prompts, not {options.num_prompts}: add some, or lower --num-prompts"
        )
    return prompts[: options.num_prompts]


def _search(options: SearchOptions) -> None:
    started = time.monotonic()
    if not options.output.parent.is_dir() or not os.access(options.output.parent, os.W_OK):
        raise ValueError(f"cannot write to {options.output.parent}: name a folder that is there and can be written to")
    prompts = read_search_prompts(options)
    from orchestrator.search.journal import Journal
    from orchestrator.search.measurement import Measurement
    from orchestrator.search.results import assemble, measure_baselines
    from orchestrator.search.run import Search
    from orchestrator.search.show import ProgressBars, draw, print_findings

    pair = _load_pair(options, prompts)
    with ProgressBars() as bars:
        measurement = Measurement(pair, options.num_inference_steps)
        settings = _settings(options, measurement.coordinates())
        journal = Journal.open(partial_path(options.output), _depends_on(options, pair, prompts))
        if journal.started_anew:
            click.echo(f"{journal.path} is of another search: starting anew", err=True)
        elif journal.results:
            click.echo(f"going on from {journal.path} with {len(journal.results)} results", err=True)

        def affords() -> bool:
            return options.max_minutes is None or time.monotonic() - started < 60.0 * options.max_minutes

        search = Search(measurement, settings, journal, bars, num_rounds=options.rounds, affords=affords)
        findings = search.run()
        baselines = measure_baselines(measurement, journal, options.num_inference_steps, bars)
    if not findings.plans:
        raise ValueError(
            f"no plan of at most {settings.cloud_calls[-1]} calls is within an error of "
            f"{options.max_error:g}: raise --max-error or --max-cloud-calls"
        )
    plan_file = assemble(
        findings,
        pair=pair,
        scheduler=pair.scheduler,
        guidance_scale=pair.guidance_scale,
        prompts=prompts,
        seeds=_seeds(options),
        command=shlex.join(["orchestrator", *sys.argv[1:]]),
        sensitivity=measurement.sensitivity,
        tolerance=options.tolerance,
    )
    plan_file.write(options.output)
    print_findings(plan_file, findings, baselines, options.max_error)
    written = [options.output, *draw(plan_file, baselines, options.output)]
    journal.path.unlink()
    click.echo(f"wrote {', '.join(map(str, written))} in {(time.monotonic() - started) / 60:.1f} minutes")


def _seeds(options: SearchOptions) -> list[int]:
    return list(range(options.seed, options.seed + options.num_prompts))


def _load_pair(options: SearchOptions, prompts: list[str]) -> InProcessPair:
    from diffusion.compatibility import check_pair
    from diffusion.loading import load_model
    from models import bundled_pair
    from orchestrator.in_process import InProcessPair

    cloud, edge = (
        load_model(name or getattr(bundled_pair(), side), device=options.device, dtype=options.dtype)
        for side, name in (("cloud", options.cloud_model), ("edge", options.edge_model))
    )
    compatibility = check_pair(cloud.info, edge.info)
    if compatibility.refusal:
        raise ValueError(compatibility.refusal)
    for line in compatibility.warnings:
        click.echo(f"warning: {line}", err=True)
    scale = cloud.info.default_guidance_scale if options.guidance_scale is None else options.guidance_scale
    pair = InProcessPair(cloud, edge, prompts, _seeds(options), guidance_scale=scale, scheduler=options.scheduler)
    pair.stepper(options.num_inference_steps)  # refuses a step count that the scheduler cannot place
    return pair


def _settings(options: SearchOptions, coordinates: tuple[tuple[float, ...], ...]) -> Any:
    from orchestrator.search.stages import SearchSettings

    num_steps = options.num_inference_steps
    most = options.max_cloud_calls or max(_FEW_STEPS_MAX_CALLS, round(_MAX_CALLS_RATIO * num_steps))
    most = min(most, num_steps) if options.max_cloud_calls is None else most
    least = min(_MIN_CALLS, most)
    min_edge_steps = round(_EDGE_STEPS_RATIO * num_steps) if options.min_edge_steps is None else options.min_edge_steps
    return SearchSettings(
        coordinates=coordinates,
        cloud_calls=tuple(range(least, most + 1)),
        hybrid_calls=tuple(range(least, min(most, _HYBRID_MAX_CALLS) + 1)),
        min_edge_steps=min_edge_steps,
        max_error=options.max_error,
        confirm=options.confirm,
    )


def _depends_on(options: SearchOptions, pair: InProcessPair, prompts: list[str]) -> dict[str, Any]:
    """Return what a closed-loop result depends on, but the candidate."""
    return {
        "models": [
            [info.fingerprint, info.vae_fingerprint, info.text_encoder_fingerprint, info.dtype, info.device]
            for info in (pair.cloud.info, pair.edge.info)
        ],
        "scheduler": [pair.scheduler, pair.cloud.info.scheduler_config, options.num_inference_steps],
        "guidance_scale": pair.guidance_scale,
        "prompts": prompts,
        "seeds": _seeds(options),
    }
