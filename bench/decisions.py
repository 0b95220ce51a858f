"""What deciding costs: `python -m bench.decisions`.

1. A decision - refresh, handoff, correction - through the public call that the loop makes, in microseconds.
2. What decisions and extrapolated steps need of the tensors - every predictor's `observe` and `predict`, the residual's
   `correct`, the measures - against one guided step of the bundled cloud model, batch 1, on as many threads.

Bars: 50 microseconds for a decision, 2 % of a cloud step for what touches tensors, for 95 of 100 calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bench.machine import RESULTS, facts, machine_line, write_results
from diffusion.loading import load_model
from diffusion.measures import MEASURES, make_measure
from diffusion.predictors import COMPANIONS, PREDICTORS, make_predictor
from diffusion.residual import Residual
from diffusion.schedulers import Stepper
from diffusion.sensitivity import ddim_sensitivities
from diffusion.trajectory import Trajectory
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair
from orchestrator.corrections import Granted, make_corrections
from orchestrator.handoff import AgreementHandoff
from orchestrator.in_process import InProcessPair
from orchestrator.refresh import REFRESH_POLICIES, make_refresh
from wire.edge_plan import CORRECTIONS, RESIDUALS, Agreement, EdgePlan
from wire.messages import Plan

STEPS = 50
REAL_STEPS = (0, 1, *range(4, STEPS, 5))
PROMPT = "red apple, fluent style"
MAX_DECISION_SECONDS = 50e-6
MAX_SHARE_OF_CLOUD_STEP = 0.02
WARMUP_ROUNDS = 2

Calls = Iterator[tuple[str, float]]
"""(what was called, seconds that it took), of one generation."""


class Case(NamedTuple):
    """One thing that is timed: all the calls of it in a generation, made anew for each."""

    kind: str
    run: Callable[[], Calls]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long the calls of one name took, against the bar."""

    kind: str
    name: str
    num_calls: int
    median_seconds: float
    p95_seconds: float
    bar_seconds: float

    @property
    def broken(self) -> bool:
        """Whether more than one call in twenty is above the bar."""
        return self.p95_seconds > self.bar_seconds


@click.command()
@click.option("--rounds", type=click.IntRange(3), default=60, show_default=True, help="Generations of each case.")
@click.option("--threads", type=click.IntRange(1), help="Threads for the tensors and the model; default: torch's own.")
@click.option("--no-bars", is_flag=True, help="Print only; exit 0 whatever was measured.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(rounds: int, threads: int | None, no_bars: bool, output: Path) -> None:
    """Measure what a decision costs, and what extrapolating costs against a cloud step."""
    if threads:
        torch.set_num_threads(threads)
    cloud_step_seconds, timings = measure(rounds)
    _print(cloud_step_seconds, timings)
    results = {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "cloud_step_seconds": cloud_step_seconds,
        "bars": {"decision_seconds": MAX_DECISION_SECONDS, "share_of_cloud_step": MAX_SHARE_OF_CLOUD_STEP},
        "timings": [asdict(timing) for timing in timings],
    }
    path = write_results("decisions", results, output)
    _plot(cloud_step_seconds, timings, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    broken = [f"{timing.kind} {timing.name}" for timing in timings if timing.broken]
    if broken and not no_bars:
        raise SystemExit(f"error: above the bar: {', '.join(broken)}")


@torch.inference_mode()
def measure(rounds: int) -> tuple[float, list[Timing]]:
    """Return the median seconds of a cloud step, and what everything else took."""
    paths = bundled_pair()
    cloud, edge = (load_model(str(path)) for path in paths)
    pair = InProcessPair(cloud, edge, [PROMPT], [0], guidance_scale=DEFAULT_GUIDANCE_SCALE)
    latents = torch.randn(cloud.latents_shape(0, 0, 1), generator=torch.Generator().manual_seed(0))

    def cloud_steps() -> list[float]:
        return [_seconds(pair.ask, cloud, latents, 501.0) for _ in range(max(rounds // 2, 5))]

    # Before and after, so that a drift of the clock speed hits both sides of the ratio.
    before = cloud_steps()
    taken: dict[tuple[str, str], list[float]] = {}
    for case in track(_cases(pair.stepper, latents), "timing", console=Console(stderr=True), transient=True):
        for round_index in range(WARMUP_ROUNDS + rounds):
            for name, seconds in case.run():
                calls = taken.setdefault((case.kind, name), [])
                if round_index >= WARMUP_ROUNDS:
                    calls.append(seconds)
    cloud_step_seconds = float(np.median([*before[WARMUP_ROUNDS:], *cloud_steps()]))
    bars = {"decision": MAX_DECISION_SECONDS, "tensors": MAX_SHARE_OF_CLOUD_STEP * cloud_step_seconds}
    return cloud_step_seconds, [
        Timing(
            kind=kind,
            name=name,
            num_calls=len(seconds),
            median_seconds=float(np.median(seconds)),
            p95_seconds=float(np.quantile(seconds, 0.95)),
            bar_seconds=bars["decision" if kind.endswith("decision") else "tensors"],
        )
        for (kind, name), seconds in taken.items()
    ]


def _cases(make_stepper: Callable[[int], Stepper], latents: Tensor) -> list[Case]:
    stepper = make_stepper(STEPS)
    sensitivity = ddim_sensitivities(stepper.schedule, stepper.prediction_type)
    return [
        *(Case("refresh decision", partial(_refresh, name)) for name in REFRESH_POLICIES),
        Case("handoff decision", _agreement_handoff),
        *(Case("correction decision", partial(_corrections, name, sensitivity)) for name in CORRECTIONS),
        *(Case("predictor", partial(_predictor, name, stepper, latents)) for name in PREDICTORS),
        *(Case("residual", partial(_residual, name, stepper, latents)) for name in RESIDUALS),
        *(Case("measure", partial(_measure, name, make_stepper, latents)) for name in MEASURES),
    ]


def _refresh(name: str) -> Calls:
    kind = REFRESH_POLICIES[name]
    plan = Plan(
        num_inference_steps=STEPS,
        handoff_step=STEPS,
        refresh=name,
        warmup_steps=kind.warmup_steps,
        skip_interval=kind.skip_interval,
        tolerance=kind.tolerance,
        final_steps=kind.final_steps,
        real_steps=REAL_STEPS if "real_steps" in kind.reads else (),
    )
    refresh = make_refresh(plan)
    for step_index in range(STEPS):
        yield name, _seconds(refresh.decide, step_index, kind.tolerance / 3)


def _agreement_handoff() -> Calls:
    """Yield the time of what one shadowed step asks for: a measurement taken in, and the decision."""
    agreement = Agreement(disagreement=(0.1,) * STEPS, tail_error=(0.5,) * (STEPS + 1), tolerance=0.1)
    policy = AgreementHandoff(agreement, Plan(num_inference_steps=STEPS, handoff_step=STEPS))

    def observe_and_decide(step_index: int) -> None:
        policy.observe(step_index, 0.1)
        policy.decide(step_index + 1)

    for step_index in range(STEPS):
        yield "agreement", _seconds(observe_and_decide, step_index)


def _corrections(name: str, sensitivity: tuple[float, ...]) -> Calls:
    """Yield the time of each wish and its granting; a disagreement costs an edge evaluation and is not counted."""
    plan = EdgePlan(corrections=name, correction_steps=REAL_STEPS, tolerance=0.05, max_cloud_calls=STEPS // 2)
    granted = Granted(policy=make_corrections(plan, sensitivity), num_inference_steps=STEPS, calls_left=STEPS // 2)
    for step_index in range(STEPS):
        yield name, _seconds(granted.wants_call, step_index, lambda: 0.1)


def _predictor(name: str, stepper: Stepper, latents: Tensor) -> Calls:
    predictor = make_predictor(name, stepper.schedule, prediction_type=stepper.prediction_type, smoothing=0.3)
    for step_index in range(STEPS):
        if step_index in REAL_STEPS:
            yield f"{name} observe", _seconds(predictor.observe, step_index, latents, latents)
        else:
            yield f"{name} predict", _seconds(predictor.predict, step_index, latents)


def _residual(name: str, stepper: Stepper, latents: Tensor) -> Calls:
    predictor = make_predictor(name, stepper.schedule, prediction_type=stepper.prediction_type, smoothing=0.3)
    residual = Residual(predictor, [0.9] * STEPS)
    for step_index in range(STEPS):
        if step_index in REAL_STEPS:
            yield f"{name} observe", _seconds(residual.observe, step_index, 0.5 * latents, latents, latents)
        else:
            yield f"{name} correct", _seconds(residual.correct, step_index, latents, latents)


def _measure(name: str, make_stepper: Callable[[int], Stepper], latents: Tensor) -> Calls:
    """Yield the time of a measure's part of each step of a trajectory; the steps themselves are not counted."""
    stepper = make_stepper(STEPS)
    predictor, companion = (
        make_predictor(each, stepper.schedule, prediction_type=stepper.prediction_type)
        for each in ("quadratic", COMPANIONS["quadratic"])
    )
    trajectory = Trajectory(latents, stepper, predictor=predictor, companion=companion)
    measure = make_measure(name, trajectory, prediction_type=stepper.prediction_type)
    for step_index in range(STEPS):
        yield f"{name} value", _seconds(measure.value)
        result = trajectory.advance(latents) if step_index in REAL_STEPS else trajectory.extrapolate()
        yield f"{name} observe", _seconds(measure.observe, result)


def _seconds(call: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def _print(cloud_step_seconds: float, timings: list[Timing]) -> None:
    title = (
        f"A cloud step, batch 1, {torch.get_num_threads()} thread(s): {1e3 * cloud_step_seconds:.1f} ms; "
        f"{machine_line()}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("what", "name"):
        table.add_column(column, no_wrap=True)
    for column in ("calls", "median us", "p95 us", "% of a cloud step", "bar us", ""):
        table.add_column(column, justify="right", no_wrap=True)
    kind = timings[0].kind
    for timing in timings:
        if timing.kind != kind:
            table.add_section()
            kind = timing.kind
        table.add_row(
            timing.kind,
            timing.name,
            str(timing.num_calls),
            f"{1e6 * timing.median_seconds:.1f}",
            f"{1e6 * timing.p95_seconds:.1f}",
            f"{timing.median_seconds / cloud_step_seconds:.3%}",
            f"{1e6 * timing.bar_seconds:.0f}",
            "broken" if timing.broken else "kept",
        )
    Console(width=120).print(table)


def _plot(cloud_step_seconds: float, timings: list[Timing], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 0.2 * len(timings) + 1.4), layout="constrained")
    rows = range(len(timings))
    medians = 1e6 * np.array([timing.median_seconds for timing in timings])
    tails = 1e6 * np.array([timing.p95_seconds for timing in timings])
    axis.hlines(rows, medians, tails, color="tab:blue", linewidth=1.2)
    axis.plot(medians, rows, "o", color="tab:blue", markersize=4, label="median, line to p95")
    bars = 1e6 * np.array([timing.bar_seconds for timing in timings])
    axis.plot(bars, rows, "|", color="tab:red", markersize=9, label="bar")
    axis.set_yticks(rows, [f"{timing.kind}: {timing.name}" for timing in timings], fontsize=7)
    axis.set(xscale="log", xlabel="microseconds a call", ylim=(len(timings) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="upper right", fontsize=7)
    machine = facts()
    axis.set_title(
        f"A cloud step takes {1e3 * cloud_step_seconds:.0f} ms at batch 1 on {torch.get_num_threads()} thread(s) "
        f"({machine['cpu']}, {machine['date']})",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
