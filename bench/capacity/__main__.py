"""Devices, latency and cost for a fleet of edges, in four modes: `python -m bench.capacity`.

A simulation (`bench.capacity.simulation`) fed with what this machine measured: forward passes by batch size in mode
cloud, encoder and extrapolated step from `bench/results/throughput.json`, the small model here and now, the links of
`bench.network`.
First it repeats the 16 ecdiff sessions that were measured there, which calibrated nothing, and must agree within 10 %.
Then it finds for each mode the fewest devices with which a fleet gets its pictures in time.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.capacity.plot import plot
from bench.capacity.simulation import Times, Work, closed_loop, fleet
from bench.machine import RESULTS, facts, write_results
from bench.network import LINKS
from edge_client.edge_model import EdgeModel
from edge_client.measured_costs import time_once
from edge_client.opening import LATENTS_ITEM_BYTES
from models import PLANS_DIR, bundled_pair
from orchestrator.choice import choose_plan
from orchestrator.plan import PlanOptions, make_plan, step_sources
from orchestrator.searched_plan import read_plan_file

MODES = ("cloud", "split", "ecdiff", "adaptive")
VALIDATED = ("ecdiff", 16)
BOUND_ERROR = 0.10
WIDE_LINKS = ("fibre", "dsl", "mobile")
_VALIDATION_SECONDS = 300.0


@click.command()
@click.option("--num-edges", type=click.IntRange(1), default=10_000, show_default=True)
@click.option(
    "--minutes-between", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Pictures of one edge."
)
@click.option(
    "--p95-times",
    type=click.FloatRange(1.1),
    default=1.5,
    show_default=True,
    help="Most that a p95 may be of an empty fleet's.",
)
@click.option("--simulated-seconds", type=click.FloatRange(10), default=120.0, show_default=True)
@click.option("--price-per-hour", type=click.FloatRange(0), default=2.0, show_default=True, help="Of one device.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(output: Path, **options: Any) -> None:
    """Simulate a fleet of edges on devices like this machine's."""
    source = output / "throughput.json"
    if not source.is_file():
        raise click.UsageError(f"{source} is missing: run python -m bench.throughput first")
    measured = json.loads(source.read_text())
    edge_step_seconds, decode_seconds, latents_bytes = asyncio.run(_edge())
    times = _times(measured, edge_step_seconds, decode_seconds)
    validation = _validate(measured, times)
    rows = [_row(mode, times, latents_bytes, measured["max_batch"], options) for mode in MODES]
    results = {"options": options, "throughput": measured["machine"], "validation": validation, "rows": rows}
    _print(results)
    path = write_results("capacity", results, output)
    plot(results, facts(), path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if validation["error"] > BOUND_ERROR:
        raise SystemExit(f"error: simulated and measured differ by {validation['error']:.1%}, above {BOUND_ERROR:.0%}")


async def _edge() -> tuple[float, float, int]:
    """Return what a step and the decoder of the bundled small model take here, and the bytes of a picture's latents."""
    edge = await EdgeModel.load(str(bundled_pair().edge), device="auto", dtype="auto")
    await time_once(edge)
    latents_bytes = math.prod(edge.model.latents_shape(0, 0, 1)) * LATENTS_ITEM_BYTES
    edge.close()
    return edge.step_seconds.seconds, edge.decode_seconds.seconds, latents_bytes


def _times(measured: dict[str, Any], edge_step_seconds: float, decode_seconds: float) -> Times:
    """Return the simulation's times: a forward pass with all that belongs to it, by its size, as mode cloud showed."""
    rows = [_measured_row(measured, "cloud", num_sessions) for num_sessions in (1, 4, measured["max_batch"])]
    sizes = [row["mean_batch"] for row in rows]
    seconds = [row["mean_batch"] / _rate(measured, row) for row in rows]

    def pass_seconds(batch_size: int) -> float:
        return float(np.interp(batch_size, sizes, seconds))

    return Times(
        pass_seconds=pass_seconds,
        extrapolated_seconds=_measured_row(measured, "ecdiff", 1)["extrapolated_seconds"],
        encode_prompt_seconds=rows[0]["encode_prompt_seconds"],
        edge_step_seconds=edge_step_seconds,
        decode_seconds=decode_seconds,
    )


def _rate(measured: dict[str, Any], row: dict[str, Any]) -> float:
    """Return a row's evaluations per second on a machine that is always as fast as it was at the first raw forward."""
    return float(row["relative_rate"] * measured["raw_evaluations_per_second"]["1"])


def _measured_row(measured: dict[str, Any], mode: str, num_sessions: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = measured["rows"]
    return next(row for row in rows if (row["mode"], row["num_sessions"]) == (mode, num_sessions))


def _validate(measured: dict[str, Any], times: Times) -> dict[str, Any]:
    """Simulate the sessions that were measured, clients that only receive, and compare."""
    mode, num_sessions = VALIDATED
    row = _measured_row(measured, mode, num_sessions)
    work = Work(sources=_work(mode).sources.rstrip("e"))
    device, seen, seconds = closed_loop(
        work, times, num_sessions=num_sessions, seconds=_VALIDATION_SECONDS, max_batch=measured["max_batch"]
    )
    simulated = {
        "evaluations_per_second": device.evaluations / seconds,
        # Clients that only receive decode nothing.
        "seconds_p50": statistics.median(took for _, took in seen.finished) - times.decode_seconds,
    }
    rate = _rate(measured, row)
    seen_there = {
        "evaluations_per_second": rate,
        "seconds_p50": row["seconds_p50"] * row["evaluations_per_second"] / rate,
    }
    errors = {name: simulated[name] / seen_there[name] - 1 for name in simulated}
    return {
        "mode": mode,
        "num_sessions": num_sessions,
        "simulated": simulated,
        "measured": seen_there,
        "error": max(map(abs, errors.values())),
    }


def _work(mode: str) -> Work:
    """Return what a picture asks for: of adaptive, what a prompt of average disagreement does."""
    if mode != "adaptive":
        return Work(sources=_letters(make_plan(mode, PlanOptions())))
    choice = choose_plan(read_plan_file(PLANS_DIR / "ddim-50.json"))
    searched = choice.searched
    letters = _letters(choice.plan)[: searched.handoff_step]
    return Work(
        sources=letters + "e" * (choice.plan.num_inference_steps - len(letters)),
        correction_steps=tuple(step for step in searched.correction_steps if step >= searched.handoff_step),
    )


def _letters(plan: Any) -> str:
    return "".join(source.letter for source in step_sources(plan) if source is not None)


def _row(mode: str, times: Times, latents_bytes: int, max_batch: int, options: dict[str, Any]) -> dict[str, Any]:
    """Find the fewest devices with which the p95 stays within bounds."""
    console = Console(stderr=True)
    work, links = _work(mode), [LINKS[name] for name in WIDE_LINKS]
    rate = options["num_edges"] / (60 * options["minutes_between"])
    seconds = options["simulated_seconds"]

    def run(num_devices: int, pictures_per_second: float) -> tuple[float, float, float]:
        devices, seen = fleet(
            work,
            times,
            num_devices=num_devices,
            pictures_per_second=pictures_per_second,
            links=links,
            latents_bytes=latents_bytes,
            seconds=seconds,
            max_batch=max_batch,
            seed=options["seed"],
        )
        # The first part fills the empty fleet.
        taken = sorted(took for at, took in seen.finished if at > seconds / 4)
        busy = sum(device.busy_seconds for device in devices) / (num_devices * seconds)
        return taken[len(taken) // 2], taken[int(0.95 * (len(taken) - 1))], busy

    empty = run(num_devices=200, pictures_per_second=2.0)
    bound = options["p95_times"] * empty[1]
    best_rate = max_batch / times.pass_seconds(max_batch)
    evaluations = work.sources.count("C") + len(work.correction_steps)
    fewest = max(1, int(rate * evaluations / best_rate))
    num_devices, (p50, p95, busy) = fewest, run(fewest, rate)
    while p95 > bound:
        num_devices = max(num_devices + 1, int(1.05 * num_devices))
        console.print(f"{mode}: {num_devices} devices", highlight=False)
        p50, p95, busy = run(num_devices, rate)
    return {
        "mode": mode,
        "evaluations_per_picture": evaluations,
        "num_devices": num_devices,
        "seconds_p50": p50,
        "seconds_p95": p95,
        "seconds_p95_empty": empty[1],
        "busy_share": busy,
        "price_per_1000_pictures": 1000 * num_devices * options["price_per_hour"] / (3600 * rate),
    }


def _print(results: dict[str, Any]) -> None:
    machine, options, validation = facts(), results["options"], results["validation"]
    console = Console(width=120)
    title = (
        f"{options['num_edges']} edges, a picture every {options['minutes_between']:g} minutes each; devices like "
        f"{machine['cpu']}, one thread; {machine['date']}"
    )
    table = Table(title=title, title_justify="left")
    for name in (
        "mode",
        "evaluations",
        "devices",
        "of cloud's",
        "busy",
        "p50 s",
        "p95 s",
        "p95 empty s",
        "per 1000 pictures",
    ):
        table.add_column(name, justify="left" if name == "mode" else "right")
    most = results["rows"][0]["num_devices"]
    for row in results["rows"]:
        table.add_row(
            row["mode"],
            str(row["evaluations_per_picture"]),
            str(row["num_devices"]),
            f"{row['num_devices'] / most:.2f}",
            f"{row['busy_share']:.0%}",
            f"{row['seconds_p50']:.2f}",
            f"{row['seconds_p95']:.2f}",
            f"{row['seconds_p95_empty']:.2f}",
            f"{row['price_per_1000_pictures']:.2f}",
        )
    console.print(table)
    simulated, measured = validation["simulated"], validation["measured"]
    console.print(
        f"{validation['num_sessions']} {validation['mode']} sessions, simulated against measured: "
        f"{simulated['evaluations_per_second']:.1f} to {measured['evaluations_per_second']:.1f} evaluations a second, "
        f"p50 {simulated['seconds_p50']:.2f} to {measured['seconds_p50']:.2f} s; "
        f"largest difference {validation['error']:.1%} (bar {BOUND_ERROR:.0%})",
        highlight=False,
    )


if __name__ == "__main__":
    main()
