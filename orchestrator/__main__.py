"""`orchestrator`: look at a plan before paying for it, search better ones, or serve them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from diffusion.scheduler_config import SCHEDULERS
from models import PLANS_DIR
from orchestrator.choice import choose_plan
from orchestrator.cost import expected_corrections
from orchestrator.decision import decide_without_search
from orchestrator.plan import (
    DEFAULT_MODE,
    DEFAULT_NUM_INFERENCE_STEPS,
    MODES,
    PlanOptions,
    cloud_calls,
    make_plan,
    parse_steps,
    step_sources,
)
from orchestrator.refresh import REFRESH_POLICIES
from orchestrator.search.command import search
from orchestrator.searched_plan import read_plan_file
from orchestrator.service.command import serve, status
from wire.messages import Plan, Source

DEFAULT_SCHEDULER = "ddim"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ecdiff")
def cli() -> None:
    """Decide where each denoising step runs: cloud, extrapolated, or edge."""


@cli.command()
@click.option("--mode", type=click.Choice(MODES), default=DEFAULT_MODE, show_default=True)
@click.option("--num-inference-steps", type=int, default=DEFAULT_NUM_INFERENCE_STEPS, show_default=True)
@click.option("--handoff-step", type=int, help="First step of the edge model; the step count means never.")
@click.option("--warmup-steps", type=int, help="ecdiff: real evaluations at the start (p).")
@click.option("--skip-interval", type=int, help="ecdiff: extrapolated steps between two real ones (k).")
@click.option("--smoothing", type=float, help="ecdiff: weight of the gradient (a).")
@click.option("--predictor", type=str, help="ecdiff: how a step is extrapolated.")
@click.option("--refresh", type=click.Choice(tuple(REFRESH_POLICIES)), help="ecdiff: when the cloud evaluates.")
@click.option(
    "--tolerance",
    type=float,
    help="adaptive: error of the final latents to allow. With a refresh that adapts: what its measure may reach.",
)
@click.option("--final-steps", type=int, help="ecdiff: real evaluations at the end of the schedule.")
@click.option(
    "--real-steps",
    type=parse_steps,
    metavar="0,1,4,...",
    help="ecdiff: the steps that the cloud evaluates, for refresh listed.",
)
@click.option("--max-cloud-calls", type=int, help="Hard bound on real evaluations in the cloud.")
@click.option(
    "--scheduler",
    type=click.Choice(SCHEDULERS),
    help="adaptive: which of the bundled pair's plans.  [default: ddim]",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="adaptive: plan file of orchestrator search.  [default: the bundled pair's]",
)
def plan(mode: str, scheduler: str | None, plan_file: Path | None, **options: Any) -> None:
    """Print what a mode does with each step, as JSON.

    C is an evaluation in the cloud, x an extrapolated step, e a step of the edge model; ? is C or x, by what the
    cloud measures at run time. nfe counts the decided ones, cloud_calls bounds the cloud's evaluations,
    corrections included. Of mode adaptive it is what a prompt of average disagreement gets; the edge asks the
    cloud again at edge_plan.correction_steps.

    Example: orchestrator plan --mode ecdiff --num-inference-steps 50
    """
    made, num_corrections, searched = _made(mode, PlanOptions(**options), scheduler, plan_file)
    sources, (least, most) = step_sources(made), cloud_calls(made)
    printed = {
        "mode": mode,
        **searched,
        "plan": asdict(made),
        "step_sources": "".join("?" if source is None else source.letter for source in sources),
        "nfe": {source.name.lower(): sources.count(source) for source in Source},
        "decided_at_run_time": sources.count(None),
        "cloud_calls": {"least": least + num_corrections, "most": most + num_corrections},
    }
    click.echo(json.dumps(printed, indent=1))


def _made(
    mode: str, options: PlanOptions, scheduler: str | None, plan_file: Path | None
) -> tuple[Plan, int, dict[str, Any]]:
    """Return the cloud's plan, how many corrections follow it, and what else there is to say of mode adaptive's."""
    if mode != "adaptive" or options.by_hand:
        if plan_file is not None:
            raise ValueError("--plan is a whole plan for mode adaptive: leave the options out that make one by hand")
        return make_plan(mode, options), 0, {}
    path = plan_file or PLANS_DIR / f"{scheduler or DEFAULT_SCHEDULER}-{options.num_inference_steps}.json"
    if not path.is_file():
        what = f"no searched plan for {scheduler or DEFAULT_SCHEDULER} with {options.num_inference_steps} steps"
        decision = decide_without_search(options, what, costs=None)
        return decision.plan, 0, {"origin": decision.origin, "why": decision.lines[0]}
    found = read_plan_file(path)
    if scheduler not in (None, found.scheduler):
        raise ValueError(f"{path} is for scheduler {found.scheduler}, not {scheduler}: leave --scheduler out")
    choice = choose_plan(
        found,
        tolerance=options.tolerance,
        max_cloud_calls=options.max_cloud_calls,
        handoff_step=options.handoff_step,
    )
    planned = choice.searched.handoff_step if options.handoff_step is None else options.handoff_step
    said: dict[str, Any] = {"origin": path.name, "why": choice.why, "expected_error": choice.error}
    said["edge_plan"] = {
        "corrections": choice.edge_plan.corrections,
        "correction_steps": choice.edge_plan.correction_steps,
        "residual": choice.edge_plan.residual,
        "latest_handoff_step": choice.plan.handoff_step,
    }
    made = replace(choice.plan, handoff_step=min(choice.plan.handoff_step, planned))
    num_corrections = expected_corrections(made, choice.edge_plan, made.handoff_step, cloud_calls(made)[1])
    return made, num_corrections, said


for _command in (search, serve, status):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and end the process; every error is one plain line on stderr."""
    try:
        code = cli.main(prog_name="orchestrator", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        code = _failed(error.format_message(), 2)
    except ValueError as error:
        code = _failed(str(error), 2)
    except OSError as error:
        code = _failed(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        if not _is_ours(error):
            raise
        code = _failed(str(error), 1)
    if code:
        sys.exit(code)


def _is_ours(error: Exception) -> bool:
    """Whether it is an EcdiffError; the tree brings grpc, which `plan` has no use for."""
    errors = sys.modules.get("wire.errors")
    return errors is not None and isinstance(error, errors.EcdiffError)


def _failed(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
