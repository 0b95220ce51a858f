"""What the shadow costs the stream: `python -m bench.shadow`.

The same plan with the shadow and without it, runs alternating, through a real cloud service on loopback. Twice: with
cloud and edge on a core of their own each, which stands for a device of its own, and with both on one core. Two
figures:

1. The cloud's own time from its first step to its last (queue and compute, as it measures them): what the shadow takes
   from the stream.
2. From Open to the handoff, as the edge sees it: with the shadow, the evaluation at the last real step is part of it.

Linux only: cores are chosen by affinity.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.intervals import ratio_interval
from bench.machine import RESULTS, machine_line, write_results
from edge_client import EdgeClient
from edge_client.local_cloud import LocalCloud
from models import read_prompts

BOUND_RATIO = 1.02
PLACEMENTS = ("a core each", "one core for both")
MEASURES = {"cloud": ("cloud_queue", "cloud_compute"), "to the handoff": ("cloud_queue", "cloud_compute", "network")}
# Every second step real: the edge has as much to do as a sensible plan ever asks of it.
PLAN = {"refresh": "listed", "real_steps": (0, *range(1, 30, 2)), "predictor": "linear", "handoff_step": 30}


@click.command()
@click.option("--repeats", type=click.IntRange(3), default=20, show_default=True, help="Pairs of runs a placement.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(repeats: int, output: Path) -> None:
    """Measure what the shadow costs the stream, on a core of its own and on a shared one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise click.UsageError("this needs two cores: one stands for a device of the edge's own")
    results: dict[str, Any] = {"repeats": repeats, "bound_ratio": BOUND_RATIO, "placements": {}}
    for placement in PLACEMENTS:
        edge_core = cores[1] if placement == PLACEMENTS[0] else cores[0]
        runs = asyncio.run(_measure(repeats, cloud_core=cores[0], edge_core=edge_core, name=placement))
        results["placements"][placement] = _summary(runs)
    _print(results)
    click.echo(f"wrote {write_results('shadow', results, output)}")
    ratio = results["placements"][PLACEMENTS[0]]["cloud"]["ratio"]
    if ratio > BOUND_RATIO:
        raise SystemExit(f"error: on a core of its own the shadow slows the cloud by {ratio:.3f}, above {BOUND_RATIO}")


async def _measure(repeats: int, *, cloud_core: int, edge_core: int, name: str) -> list[dict[str, dict[str, float]]]:
    """Return the report's seconds of each pair of runs, by whether there was a shadow."""
    console = Console(stderr=True)
    with _on_core(cloud_core):
        cloud = await LocalCloud.start(None, device="cpu", dtype="auto")
    runs = []
    try:
        with _on_core(edge_core):
            async with EdgeClient(cloud=cloud.address) as client:
                for repeat, prompt in enumerate(["warm-up", *read_prompts("report")[:repeats]]):
                    console.print(f"{name}: run {repeat} of {repeats}", highlight=False)
                    order = (True, False) if repeat % 2 else (False, True)
                    runs.append({_key(shadow): await _seconds(client, prompt, shadow) for shadow in order})
    finally:
        await cloud.stop()
    return runs[1:]


async def _seconds(client: EdgeClient, prompt: str, shadow: bool) -> dict[str, float]:
    result = await client.generate(prompt, mode="adaptive", shadow=shadow, **PLAN)
    if result.report["fallbacks"]:
        raise SystemExit(f"error: {result.report['fallbacks'][0]}; the figures would mean nothing")
    seconds: dict[str, float] = result.report["seconds"]
    return {name: sum(seconds[part] for part in parts) for name, parts in MEASURES.items()}


def _key(shadow: bool) -> str:
    return "with" if shadow else "without"


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Run everything that starts in this block on one core: threads and processes inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return every value and the ratio of the means for each measure."""
    found: dict[str, Any] = {}
    for name in MEASURES:
        columns = {key: [run[key][name] for run in runs] for key in ("with", "without")}
        found[name] = {
            "seconds": columns,
            "ratio": statistics.fmean(columns["with"]) / statistics.fmean(columns["without"]),
            "ratio_interval": ratio_interval(columns["with"], columns["without"]),
        }
    return found


def _print(results: dict[str, Any]) -> None:
    title = f"with the shadow / without it; {machine_line()}"
    table = Table(title=title, title_justify="left")
    for name in ("placement", "measure", "with ms", "without ms", "ratio", "95 % interval"):
        table.add_column(name, justify="left" if name in ("placement", "measure") else "right")
    for placement, measures in results["placements"].items():
        for name, found in measures.items():
            table.add_row(
                placement,
                name,
                f"{1000 * statistics.fmean(found['seconds']['with']):.0f}",
                f"{1000 * statistics.fmean(found['seconds']['without']):.0f}",
                f"{found['ratio']:.3f}",
                "{:.3f}-{:.3f}".format(*found["ratio_interval"]),
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
