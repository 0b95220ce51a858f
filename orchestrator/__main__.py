"""`orchestrator`: look at a plan before paying for it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from orchestrator.plan import DEFAULT_NUM_INFERENCE_STEPS, MODES, PlanOptions, make_plan, step_sources
from orchestrator.refresh import REFRESH_POLICIES
from wire.messages import Source


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ecdiff")
def cli() -> None:
    """Decide where each denoising step runs: cloud, extrapolated, or edge."""


@cli.command()
@click.option("--mode", type=click.Choice(MODES), default="ecdiff", show_default=True)
@click.option("--num-inference-steps", type=int, default=DEFAULT_NUM_INFERENCE_STEPS, show_default=True)
@click.option("--handoff-step", type=int, help="First step of the edge model; the step count means never.")
@click.option("--warmup-steps", type=int, help="ecdiff: real evaluations at the start (p).")
@click.option("--skip-interval", type=int, help="ecdiff: extrapolated steps between two real ones (k).")
@click.option("--smoothing", type=float, help="ecdiff: weight of the gradient (a).")
@click.option("--predictor", type=str, help="ecdiff: how a step is extrapolated.")
@click.option("--refresh", type=click.Choice(tuple(REFRESH_POLICIES)), help="ecdiff: when the cloud evaluates.")
@click.option("--max-cloud-calls", type=int, help="Hard bound on real evaluations in the cloud.")
def plan(mode: str, **options: int | float | str | None) -> None:
    """Print what a mode does with each step, as JSON.

    C is an evaluation in the cloud, x an extrapolated step, e a step of the edge model.

    Example: orchestrator plan --mode ecdiff --num-inference-steps 50
    """
    made = make_plan(mode, PlanOptions(**options))  # type: ignore[arg-type]
    sources = step_sources(made)
    counts = {source.name.lower(): sources.count(source) for source in Source}
    letters = "".join(source.letter for source in sources)
    click.echo(json.dumps({"mode": mode, "plan": asdict(made), "step_sources": letters, "nfe": counts}, indent=1))


def main() -> None:
    """Run the command line; every error is one plain line on stderr."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(2)
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
