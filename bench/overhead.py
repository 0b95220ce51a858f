"""What the service path costs over the same plan in one process: `python -m bench.overhead`.

Three questions, answered in one run on one machine:

1. Generation over real gRPC on loopback against the same plan with both models in this process, in
   `cloud` and `ecdiff` mode, as a ratio of medians. Runs alternate, so that a slow spell hits both.
2. How long latents take from the cloud to the edge, against one cloud step: the transit of every latents (sent to
   arrived), and the handoff (end of the cloud's last step to the start of the first edge step, queueing included).
3. How long `edge-client --help` takes.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.machine import RESULTS, machine_line, write_results
from diffusion.loading import load_model
from diffusion.model import Model
from edge_client import EdgeClient
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, make_plan

MODES = ("cloud", "ecdiff")
PROMPT = "red apple, fluent style"
BOUND_RATIO = 1.03
HELP_RUNS = 5


@click.command()
@click.option("--repeats", type=click.IntRange(3), default=15, show_default=True, help="Generations a mode and path.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(repeats: int, output: Path) -> None:
    """Measure the overhead of the service path."""
    results = asyncio.run(measure(repeats))
    results["help_seconds"] = [_help_seconds() for _ in range(HELP_RUNS)]
    _print(results)
    path = write_results("overhead", results, output)
    _plot(results, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    over = [mode for mode, found in results["modes"].items() if found["ratio"] > BOUND_RATIO]
    if over:
        raise SystemExit(f"error: the service path is above {BOUND_RATIO} of one process in mode {', '.join(over)}")


async def measure(repeats: int) -> dict[str, Any]:
    """Return the seconds of every run, by mode and path."""
    paths = bundled_pair()
    models = load_model(str(paths.cloud)), load_model(str(paths.edge))
    console = Console(stderr=True)
    results: dict[str, Any] = {"repeats": repeats, "bound_ratio": BOUND_RATIO, "modes": {}}
    async with EdgeClient() as client:
        for mode in MODES:
            runs = []
            for repeat in range(repeats + 1):  # the first one warms both paths up
                console.print(f"{mode}: run {repeat} of {repeats}", highlight=False)
                runs.append(await _run_both(client, models, mode, seed=repeat))
            results["modes"][mode] = _summary(runs[1:])
    return results


async def _run_both(client: EdgeClient, models: tuple[Model, Model], mode: str, seed: int) -> dict[str, Any]:

    def in_process() -> tuple[float, np.ndarray[Any, Any]]:
        started = time.perf_counter()
        pair = InProcessPair(*models, [PROMPT], [seed], guidance_scale=DEFAULT_GUIDANCE_SCALE)
        latents = pair.generate(make_plan(mode, PlanOptions())).latents
        pair.edge.decode(latents)
        return time.perf_counter() - started, latents.numpy()

    async def service() -> tuple[float, Any]:
        started = time.perf_counter()
        result = await client.generate(PROMPT, mode=mode, seed=seed)
        return time.perf_counter() - started, result

    # Alternating which goes first keeps drifts of the clock speed out of the ratio.
    if seed % 2:
        in_process_seconds, expected = await asyncio.to_thread(in_process)
        service_seconds, result = await service()
    else:
        service_seconds, result = await service()
        in_process_seconds, expected = await asyncio.to_thread(in_process)
    report = result.report
    return {
        "in_process_seconds": in_process_seconds,
        "service_seconds": service_seconds,
        "latents_difference": float(np.abs(result.latents - expected).max() / expected.std()),
        "cloud_step_seconds": report["seconds"]["cloud_compute"] / max(1, report["nfe"]["cloud"]),
        "transit_seconds": report["network"]["latents_transit_seconds"]["p95"],
        "handoff_seconds": report["seconds"]["handoff"],
        "fallbacks": report["fallbacks"],
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Fold the runs of one mode."""
    if any(run["fallbacks"] for run in runs):
        raise SystemExit("error: a run lost its cloud; the figures would mean nothing")

    def median(name: str) -> float:
        return float(statistics.median(run[name] for run in runs))

    return {
        "in_process_seconds": [run["in_process_seconds"] for run in runs],
        "service_seconds": [run["service_seconds"] for run in runs],
        "ratio": median("service_seconds") / median("in_process_seconds"),
        "ratio_interval": ratio_interval(runs),
        "latents_difference_max": max(run["latents_difference"] for run in runs),
        "cloud_step_seconds": median("cloud_step_seconds"),
        "latents_transit_p95_seconds": median("transit_seconds"),
        "handoff_seconds": median("handoff_seconds"),
    }


def ratio_interval(runs: list[dict[str, Any]], resamples: int = 2000) -> list[float]:
    """Return the 95 % bootstrap interval of the ratio of medians; runs are drawn as pairs."""
    pairs = np.array([(run["service_seconds"], run["in_process_seconds"]) for run in runs])
    drawn = np.random.default_rng(0).integers(len(pairs), size=(resamples, len(pairs)))
    medians = np.median(pairs[drawn], axis=1)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], (0.025, 0.975))
    return [float(low), float(high)]


def _help_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edge_client", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _print(results: dict[str, Any]) -> None:
    where = machine_line()
    title = f"service path over loopback gRPC / one process; {where}"
    table = Table(title=title, title_justify="left")
    for name in (
        "mode",
        "in process s",
        "service s",
        "ratio",
        "95 % interval",
        "bound",
        "largest difference",
        "cloud step ms",
        "latents transit p95 ms",
        "handoff ms",
    ):
        table.add_column(name, justify="right")
    for mode, found in results["modes"].items():
        table.add_row(
            mode,
            f"{statistics.median(found['in_process_seconds']):.3f}",
            f"{statistics.median(found['service_seconds']):.3f}",
            f"{found['ratio']:.3f}",
            "{:.3f}-{:.3f}".format(*found["ratio_interval"]),
            f"{BOUND_RATIO}",
            f"{found['latents_difference_max']:.1e}",
            f"{1000 * found['cloud_step_seconds']:.1f}",
            f"{1000 * found['latents_transit_p95_seconds']:.2f}",
            f"{1000 * found['handoff_seconds']:.2f}",
        )
    Console(width=160).print(table)
    click.echo(f"edge-client --help: median {statistics.median(results['help_seconds']):.2f} s (bound 0.5 s)")


def _plot(results: dict[str, Any], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results["modes"]), figsize=(8, 3.6), layout="constrained")
    for axis, (mode, found) in zip(axes, results["modes"].items(), strict=True):
        axis.boxplot(
            [found["in_process_seconds"], found["service_seconds"]], tick_labels=["one process", "loopback gRPC"]
        )
        axis.set_title(f"{mode}: ratio {found['ratio']:.3f}")
        axis.set_ylabel("prompt to picture, s")
        axis.set_ylim(bottom=0)
    figure.suptitle(f"Service overhead ({machine_line()})", fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
