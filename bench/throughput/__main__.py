"""Pictures per minute of one service under 1, 4, 16 and 64 sessions: `python -m bench.throughput`.

Clients that only receive keep so many sessions going, in modes cloud and ecdiff, against one real service on a core of
its own. Beside it stand the same service asked one picture at a time in mode cloud, and the raw batched forward of the
model in a process of its own with the same threads.

The bars: with 16 ecdiff sessions the service makes at least 0.9 of the evaluations per second of the raw forward at the
batch size that it reached, and so at least 0.9 x (50 / 17) x the raw batching gain times the pictures of one at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.intervals import quantile_interval
from bench.machine import RESULTS, facts, write_results
from bench.throughput.load import Load, offer
from bench.throughput.service import Service, running_service
from orchestrator.plan import PlanOptions, make_plan, step_sources
from wire.messages import Source

SESSIONS = (1, 4, 16, 64)
MODES = ("cloud", "ecdiff")
BOUND_SHARE = 0.9
JUDGED = ("ecdiff", 16)


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(5), default=30.0, show_default=True, help="Of each row, ramp included."
)
@click.option("--max-batch", type=click.IntRange(1), default=16, show_default=True, help="Of the service.")
@click.option("--compile", "compile_steps", is_flag=True, help="Of the service and of the raw forward.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(seconds: float, max_batch: int, compile_steps: bool, output: Path) -> None:
    """Measure what one service makes of many sessions, against one at a time and against the raw forward."""
    raw = _raw_forward(compile_steps)
    rows = asyncio.run(_measure(seconds, max_batch, compile_steps))
    results: dict[str, Any] = {"seconds": seconds, "max_batch": max_batch, "compiled": compile_steps}
    results |= {"raw_evaluations_per_second": raw, "rows": rows}
    results |= _verdict(rows, raw)
    _print(results)
    click.echo(f"wrote {write_results('throughput', results, output)}")
    if not results["passed"]:
        raise SystemExit(f"error: {results['share_of_raw']:.2f} of the raw batched forward, the bar is {BOUND_SHARE}")


def _raw_forward(compile_steps: bool) -> dict[int, float]:
    Console(stderr=True).print("raw batched forward", highlight=False)
    command = [sys.executable, "-m", "bench.throughput.forward", *(["--compile"] if compile_steps else [])]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return {int(size): rate for size, rate in json.loads(done.stdout).items()}


async def _measure(seconds: float, max_batch: int, compile_steps: bool) -> list[dict[str, Any]]:
    console, rows = Console(stderr=True), []
    async with running_service(max_batch=max_batch, max_sessions=max(SESSIONS), compile_steps=compile_steps) as service:
        await offer(service.address, mode="ecdiff", num_sessions=2, seconds=1.0)
        for mode in MODES:
            for num_sessions in SESSIONS:
                console.print(f"mode {mode}, {num_sessions} sessions, {seconds:g} s", highlight=False)
                rows.append(await _row(service, mode, num_sessions, seconds))
    return rows


async def _row(service: Service, mode: str, num_sessions: int, seconds: float) -> dict[str, Any]:
    """Offer one load; what counts lies between the first second in which every session runs and the last one."""
    loading = asyncio.create_task(offer(service.address, mode=mode, num_sessions=num_sessions, seconds=seconds))
    ramp = seconds / 5
    await asyncio.sleep(ramp)
    began, before = time.perf_counter(), await asyncio.to_thread(service.counts)
    await asyncio.sleep(seconds - ramp)
    ended, after = time.perf_counter(), await asyncio.to_thread(service.counts)
    load: Load = await loading
    taken = [took for at, took in load.finished if began <= at <= ended]
    elapsed = ended - began
    evaluations = after.evaluations - before.evaluations
    passes = after.passes - before.passes
    return {
        "mode": mode,
        "num_sessions": num_sessions,
        "evaluations_per_second": evaluations / elapsed,
        "mean_batch": (after.batched - before.batched) / max(1, passes),
        # Of what was evaluated in that time: whole pictures are too few to count when each takes long.
        "pictures_per_minute": 60 * evaluations / elapsed / _cloud_calls(mode),
        "num_finished": len(taken),
        "seconds_p50": statistics.median(taken) if taken else None,
        "seconds_p95": sorted(taken)[max(0, int(0.95 * len(taken) + 0.5) - 1)] if taken else None,
        "encode_prompt_seconds": statistics.median(load.encode_prompt_seconds),
        "extrapolated_seconds": statistics.median(load.extrapolated_seconds) if load.extrapolated_seconds else None,
        "seconds_p50_interval": quantile_interval(taken, 0.5) if len(taken) > 2 else None,
    }


def _cloud_calls(mode: str) -> int:
    return step_sources(make_plan(mode, PlanOptions())).count(Source.CLOUD)


def _verdict(rows: list[dict[str, Any]], raw: dict[int, float]) -> dict[str, Any]:
    row = next(each for each in rows if (each["mode"], each["num_sessions"]) == JUDGED)
    alone = next(each for each in rows if (each["mode"], each["num_sessions"]) == ("cloud", 1))
    at_batch = _raw_at(raw, row["mean_batch"])
    share = row["evaluations_per_second"] / at_batch
    gain = at_batch / raw[1]
    multiple = row["pictures_per_minute"] / alone["pictures_per_minute"]
    aim = BOUND_SHARE * _cloud_calls("cloud") / _cloud_calls("ecdiff") * gain
    return {
        "share_of_raw": share,
        "raw_batching_gain": gain,
        "multiple_of_one_at_a_time": multiple,
        "multiple_aim": aim,
        "passed": share >= BOUND_SHARE and multiple >= aim,
    }


def _raw_at(raw: dict[int, float], batch: float) -> float:
    """Return the raw rate at a mean batch size, between the two that were measured around it."""
    sizes = sorted(raw)
    low = max([size for size in sizes if size <= batch], default=sizes[0])
    high = min([size for size in sizes if size >= batch], default=sizes[-1])
    weight = 0.0 if high == low else (batch - low) / (high - low)
    return (1 - weight) * raw[low] + weight * raw[high]


def _print(results: dict[str, Any]) -> None:
    machine, raw, rows = facts(), results["raw_evaluations_per_second"], results["rows"]
    alone = next(each for each in rows if (each["mode"], each["num_sessions"]) == ("cloud", 1))
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
        table.add_row(
            row["mode"],
            str(row["num_sessions"]),
            f"{row['mean_batch']:.1f}",
            f"{row['evaluations_per_second']:.1f}",
            f"{row['evaluations_per_second'] / _raw_at(raw, row['mean_batch']):.2f}",
            f"{row['pictures_per_minute']:.1f}",
            f"{row['pictures_per_minute'] / alone['pictures_per_minute']:.2f}",
            *(f"{row[name]:.2f}" if row[name] else "-" for name in ("seconds_p50", "seconds_p95")),
            end_section=row["num_sessions"] == SESSIONS[-1],
        )
    console = Console(width=120)
    console.print(table)
    rates = ", ".join(f"{size}: {rate:.1f}" for size, rate in raw.items())
    console.print(f"raw forward, guided evaluations a second by batch size: {rates}", highlight=False)
    console.print(
        f"{JUDGED[1]} {JUDGED[0]} sessions: {results['share_of_raw']:.2f} of the raw forward (bar {BOUND_SHARE}), "
        f"{results['multiple_of_one_at_a_time']:.2f} times the pictures of one at a time "
        f"(bar {results['multiple_aim']:.2f})",
        highlight=False,
    )


if __name__ == "__main__":
    main()
