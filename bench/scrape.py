"""What being watched costs: `python -m bench.scrape`.

Two figures of a real cloud service with the bundled model, its series filled by real generations:

1. The processor time that one scrape takes from the service, over many scrapes of an idle service. At the scrape
   interval that we ship it is a share of every second, so also of every step: the bar is 1 %.
2. The steps of generations that run while it is scraped far more often than that, against those of generations that
   nobody watches, alternating.

Linux only: processor time is read from /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator
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

BOUND_SHARE = 0.01
SCRAPES_PER_SECOND = 10.0
SHIPPED = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "prometheus.yml"


@click.command()
@click.option("--num-scrapes", type=click.IntRange(10), default=1000, show_default=True, help="Of the idle service.")
@click.option("--repeats", type=click.IntRange(3), default=12, show_default=True, help="Pairs of generations.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(num_scrapes: int, repeats: int, output: Path) -> None:
    """Measure what a scrape costs the service, and what being scraped costs its steps."""
    results = asyncio.run(_measure(num_scrapes, repeats))
    _print(results)
    click.echo(f"wrote {write_results('scrape', results, output)}")
    if results["share"] > BOUND_SHARE:
        raise SystemExit(f"error: scraping takes {results['share']:.2%} of the service's time, above {BOUND_SHARE:.0%}")


def shipped_interval_seconds() -> float:
    """Return the scrape interval of the Prometheus configuration that we ship."""
    match = re.search(r"scrape_interval: (\d+)s", SHIPPED.read_text())
    assert match is not None
    return float(match[1])


async def _measure(num_scrapes: int, repeats: int) -> dict[str, Any]:
    console = Console(stderr=True)
    cloud = await LocalCloud.start(None, device="cpu", dtype="auto")
    try:
        async with EdgeClient(cloud=cloud.address) as client:
            prompts = read_prompts("report")
            await _step_seconds(client, "warm-up")
            steps: dict[str, list[float]] = {"scraped": [], "alone": []}
            for repeat in range(repeats):
                console.print(f"pair {repeat + 1} of {repeats}", highlight=False)
                for name in sorted(steps, reverse=bool(repeat % 2)):
                    async with _scraping(cloud.metrics_address) if name == "scraped" else contextlib.nullcontext():
                        steps[name].append(await _step_seconds(client, prompts[repeat % len(prompts)]))
        cpu_seconds, wall_seconds = await asyncio.to_thread(_scrape_idle, cloud, num_scrapes)
    finally:
        await cloud.stop()
    interval = shipped_interval_seconds()
    return {
        "num_scrapes": num_scrapes,
        "scrape_cpu_seconds": cpu_seconds,
        "scrape_wall_seconds": wall_seconds,
        "scrape_interval_seconds": interval,
        "share": cpu_seconds / interval,
        "scrapes_per_second": SCRAPES_PER_SECOND,
        "step_seconds": steps,
        "step_ratio": statistics.fmean(steps["scraped"]) / statistics.fmean(steps["alone"]),
        "step_ratio_interval": ratio_interval(steps["scraped"], steps["alone"]),
    }


async def _step_seconds(client: EdgeClient, prompt: str) -> float:
    """Return the mean of a generation's cloud steps, as the cloud measures them."""
    report = (await client.generate(prompt, mode="cloud")).report
    if report["fallbacks"]:
        raise SystemExit(f"error: {report['fallbacks'][0]}; the figures would mean nothing")
    return float(report["seconds"]["cloud_compute"] / report["nfe"]["cloud"])


@contextlib.asynccontextmanager
async def _scraping(address: str) -> AsyncIterator[None]:
    """Scrape again and again while the block runs."""

    async def scrape_forever() -> None:
        while True:
            await asyncio.to_thread(_scrape, address)
            await asyncio.sleep(1.0 / SCRAPES_PER_SECOND)

    task = asyncio.create_task(scrape_forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _scrape(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        answer.read()


def _scrape_idle(cloud: LocalCloud, num_scrapes: int) -> tuple[float, float]:
    """Return processor and wall time of one scrape."""
    cpu, wall = _cpu_seconds(cloud.pid), time.perf_counter()
    for _ in range(num_scrapes):
        _scrape(cloud.metrics_address)
    return (_cpu_seconds(cloud.pid) - cpu) / num_scrapes, (time.perf_counter() - wall) / num_scrapes


def _cpu_seconds(pid: int) -> float:
    """Return what a process has computed so far, user and system (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _print(results: dict[str, Any]) -> None:
    table = Table(title=machine_line(), title_justify="left")
    table.add_column("what a scrape costs")
    table.add_column("", justify="right")
    low, high = results["step_ratio_interval"]
    for name, value in (
        ("processor time of one scrape", f"{1000 * results['scrape_cpu_seconds']:.2f} ms"),
        (f"share of the time, every {results['scrape_interval_seconds']:.0f} s", f"{results['share']:.3%}"),
        (
            f"step, scraped {results['scrapes_per_second']:.0f} times a second / alone",
            f"{results['step_ratio']:.3f} ({low:.3f}-{high:.3f})",
        ),
    ):
        table.add_row(name, value)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
