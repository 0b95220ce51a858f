"""Pictures per minute of one service under 1, 4, 16 and 64 sessions: `python -m bench.throughput`.

Clients that only receive keep so many sessions going, in modes cloud and ecdiff, against one real service. Every few
seconds the service is stopped for a moment (SIGSTOP) and the raw batched forward of the model is measured, in a process
of its own with as many threads: what the service makes is told in units of what the machine can do at that time. One
at a time in mode cloud is the sequential all-cloud rate.

A third figure is what the device thread does beside the forward pass for each session of a batch of 16.

The bars: with 16 ecdiff sessions the service makes at least 0.9 of the evaluations per second of the raw forward at the
batch size that it reached, and so at least 0.9 x (50 / 17) x the raw batching gain times the pictures of one at a time;
the work beside a batch of 16 is under 0.05 of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.machine import RESULTS, facts, write_results
from bench.throughput.forward import raw_forward
from bench.throughput.plot import plot
from bench.throughput.row import Row, measure_row
from bench.throughput.service import running_service
from orchestrator.plan import PlanOptions, make_plan, step_sources
from wire.messages import Source

SESSIONS = (1, 4, 16, 64)
MODES = ("cloud", "ecdiff")
RAW_BATCHES = (1, 2, 4, 8, 16)
BOUND_SHARE = 0.9
BOUND_SAMPLE_WORK = 0.05
ALONE, JUDGED = ("cloud", 1), ("ecdiff", 16)


@click.command()
@click.option(
    "--slices", type=click.IntRange(2), default=4, show_default=True, help="Of 8 seconds each, in every row at least."
)
@click.option("--max-batch", type=click.IntRange(1), default=16, show_default=True, help="Of the service.")
@click.option("--compile", "compile_steps", is_flag=True, help="Of the service and of the raw forward.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(slices: int, max_batch: int, compile_steps: bool, output: Path) -> None:
    """Measure what one service makes of many sessions, against one at a time and against the raw forward."""
    sample_work = _sample_work()
    raw, rows = asyncio.run(_measure(slices, max_batch, compile_steps))
    results: dict[str, Any] = {"slices": slices, "max_batch": max_batch, "compiled": compile_steps}
    results |= {"sample_work": sample_work}
    results |= {"raw_evaluations_per_second": raw}
    results |= {"rows": [_figures(row) for row in rows]} | _verdict({(row.mode, row.num_sessions): row for row in rows})
    _print(results)
    path = write_results("throughput", results, output)
    plot(results, facts(), path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if sample_work["share"] >= BOUND_SAMPLE_WORK:
        raise SystemExit(
            f"error: {sample_work['share']:.1%} of a forward pass beside it, the bar is {BOUND_SAMPLE_WORK:.0%}"
        )
    if not results["passed"]:
        raise SystemExit(
            f"error: {results['share_of_raw']:.2f} of the raw batched forward, the bar is {BOUND_SHARE}; "
            f"{results['multiple_of_one_at_a_time']:.2f} times one at a time, the bar is {results['multiple_aim']:.2f}"
        )


def _sample_work() -> dict[str, float]:
    Console(stderr=True).print("work beside the forward pass", highlight=False)
    command = [sys.executable, "-P", "-m", "bench.throughput.sample_work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


async def _measure(num_slices: int, max_batch: int, compile_steps: bool) -> tuple[dict[int, float], list[Row]]:
    console, rows = Console(stderr=True), []
    async with raw_forward(max_batch=max_batch, compile_steps=compile_steps) as raw:
        console.print("raw batched forward", highlight=False)
        rates = await raw.rates(RAW_BATCHES)
        async with running_service(
            max_batch=max_batch, max_sessions=max(SESSIONS), compile_steps=compile_steps
        ) as service:
            for mode in MODES:
                for num_sessions in SESSIONS:
                    console.print(f"mode {mode}, {num_sessions} sessions", highlight=False)
                    row = await measure_row(service, raw, mode=mode, num_sessions=num_sessions, num_slices=num_slices)
                    rows.append(row)
    return rates, rows


def _figures(row: Row) -> dict[str, Any]:
    taken, load = sorted(row.load.finished), row.load
    return {
        "mode": row.mode,
        "num_sessions": row.num_sessions,
        "slices": [vars(each) for each in row.slices],
        "mean_batch": row.mean_batch,
        "evaluations_per_second": row.evaluations_per_second,
        "relative_rate": row.relative_rate,
        "share_of_raw": row.share_of_raw,
        "share_of_raw_interval": row.share_of_raw_interval,
        # Of what was evaluated in that time: whole pictures are too few to count when each takes long.
        "pictures_per_minute": 60 * row.evaluations_per_second / _cloud_calls(row.mode),
        "num_finished": len(taken),
        "seconds_p50": statistics.median(taken) if taken else None,
        "seconds_p95": taken[max(0, int(0.95 * len(taken) + 0.5) - 1)] if taken else None,
        "encode_prompt_seconds": statistics.median(load.encode_prompt_seconds),
        "extrapolated_seconds": statistics.median(load.extrapolated_seconds) if load.extrapolated_seconds else None,
    }


def _cloud_calls(mode: str) -> int:
    return step_sources(make_plan(mode, PlanOptions())).count(Source.CLOUD)


def _verdict(rows: dict[tuple[str, int], Row]) -> dict[str, Any]:
    """Judge each load by the raw forward of its own time."""
    judged, alone = rows[JUDGED], rows[ALONE]
    calls = _cloud_calls("cloud") / _cloud_calls("ecdiff")
    multiple = calls * judged.relative_rate / alone.relative_rate
    aim = BOUND_SHARE * calls * judged.raw_gain
    return {
        "share_of_raw": judged.share_of_raw,
        "share_of_raw_interval": judged.share_of_raw_interval,
        "raw_batching_gain": judged.raw_gain,
        "multiple_of_one_at_a_time": multiple,
        "multiple_aim": aim,
        "passed": judged.share_of_raw >= BOUND_SHARE and multiple >= aim,
    }


def _print(results: dict[str, Any]) -> None:
    machine, raw, rows = facts(), results["raw_evaluations_per_second"], results["rows"]
    alone = next(row for row in rows if (row["mode"], row["num_sessions"]) == ALONE)
    device = f"one service on {machine['gpu']}" if machine["gpu"] else "one service, one thread"
    title = f"{device}; {machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']}"
    table = Table(title=title, title_justify="left")
    for name in (
        "mode",
        "sessions",
        "batch",
        "evaluations / s",
        "of raw",
        "pictures / min",
        "x one at a time",
        "p50 s",
        "p95 s",
    ):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for row in rows:
        calls = _cloud_calls("cloud") / _cloud_calls(row["mode"])
        table.add_row(
            row["mode"],
            str(row["num_sessions"]),
            f"{row['mean_batch']:.1f}",
            f"{row['evaluations_per_second']:.1f}",
            f"{row['share_of_raw']:.2f}",
            f"{row['pictures_per_minute']:.1f}",
            f"{calls * row['relative_rate'] / alone['relative_rate']:.2f}",
            *(f"{row[name]:.2f}" if row[name] else "-" for name in ("seconds_p50", "seconds_p95")),
            end_section=row["num_sessions"] == SESSIONS[-1],
        )
    console = Console(width=120)
    console.print(table)
    rates = ", ".join(f"{size}: {rate:.1f}" for size, rate in raw.items())
    low, high = results["share_of_raw_interval"]
    console.print(f"raw forward, guided evaluations a second by batch size: {rates}", highlight=False)
    console.print(
        f"beside a forward pass of 16: {results['sample_work']['share']:.1%} of it (bar {BOUND_SAMPLE_WORK:.0%})",
        highlight=False,
    )
    console.print(
        f"{JUDGED[1]} {JUDGED[0]} sessions: {results['share_of_raw']:.3f} ({low:.3f} to {high:.3f}) of the raw forward "
        f"(bar {BOUND_SHARE}), {results['multiple_of_one_at_a_time']:.2f} times the pictures of one at a time "
        f"(bar {results['multiple_aim']:.2f})",
        highlight=False,
    )


if __name__ == "__main__":
    main()
