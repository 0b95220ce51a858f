"""What a generation is predicted to take against what it takes: `python -m bench.deadline`.

On every link, with the models loaded: each mode, and mode adaptive under several deadlines, first predicted from what
is measured at that moment, then run. Cloud, edge and emulated network are processes of their own, the first two with
one thread each, so that they compute side by side. Runs of all modes take turns, so that a slow spell hits all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import matplotlib
import torch
from rich.console import Console
from rich.table import Table

from bench.intervals import quantile_interval
from bench.machine import RESULTS, facts, write_results
from bench.network import LINKS, network_process
from edge_client import EdgeClient
from edge_client.cloud_link import CloudLink
from edge_client.local_cloud import LocalCloud
from edge_client.report import Report
from edge_client.request import GenerationRequest
from models import read_prompts
from orchestrator.plan import PlanOptions
from wire.credentials import Credentials

BOUND_RATIO = 0.1
LOAD_SECONDS = 120.0


@dataclass(frozen=True)
class Variant:
    """A mode with options; with a deadline where one is given, as a share of what mode cloud takes on that link."""

    name: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)
    deadline_ratio: float | None = None


CLOUD = Variant("cloud", "cloud")
VARIANTS = (
    CLOUD,
    Variant("edge", "edge"),
    Variant("split", "split"),
    Variant("ecdiff", "ecdiff"),
    Variant("adaptive", "adaptive"),
    # Of the bundled plans these have the edge in them: shadow, agreement and corrections; without the first two; with
    # all but agreement.
    Variant("adaptive, error 0.017", "adaptive", {"tolerance": 0.017}),
    Variant("adaptive, no shadow", "adaptive", {"tolerance": 0.017, "shadow": False}),
    Variant("adaptive, handoff at 30", "adaptive", {"tolerance": 0.017, "handoff_step": 30}),
    *(Variant(f"deadline {ratio:g} of cloud", "adaptive", deadline_ratio=ratio) for ratio in (0.25, 0.4, 0.6, 0.9)),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation, predicted and measured; seconds by their names in the report.

    Attributes:
        deadline_seconds: None without one.
        predicted_seconds: From the prompt to the picture.
        measured_seconds: The same, without the first contact.
        parts_predicted: What that is made of; empty with a deadline.
        parts_measured: Of the report.
        cloud_calls: Evaluations in the cloud, corrections included.
        handoff_step: Where the edge took over.
    """

    link: str
    variant: str
    prompt: str
    deadline_seconds: float | None
    predicted_seconds: float
    measured_seconds: float
    parts_predicted: dict[str, float]
    parts_measured: dict[str, float]
    cloud_calls: int
    handoff_step: int

    @property
    def error_ratio(self) -> float:
        """|predicted - measured| / measured."""
        return abs(self.predicted_seconds - self.measured_seconds) / self.measured_seconds


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=6, show_default=True, help="Runs a mode and link.")
@click.option("--links", default=",".join(LINKS), show_default=True, help="Which of bench.network's links.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each model.")
@click.option("--no-bars", is_flag=True, help="Exit 0 whatever was measured.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(repeats: int, links: str, threads: int, no_bars: bool, output: Path) -> None:
    """Compare predicted with measured latency."""
    if unknown := set(links.split(",")) - set(LINKS):
        raise click.UsageError(f"--links: no {', '.join(sorted(unknown))}; there are {', '.join(LINKS)}")
    # The edge is in this process, and the cloud inherits its environment.
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    runs = asyncio.run(measure(links.split(","), repeats))
    error_ratio = show(runs)
    path = write_results("deadline", results(runs, repeats, threads), output)
    plot(runs, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if error_ratio > BOUND_RATIO and not no_bars:
        raise SystemExit(f"error: the median of |predicted - measured| / measured is {error_ratio:.3f}")


# ---------------------------------------------------------------------------------- runs


async def measure(links: Sequence[str], repeats: int) -> list[Run]:
    """Return every run, in the order of the links."""
    runs: list[Run] = []
    prompts = read_prompts("report")
    console = Console(stderr=True)
    async with _cloud() as address:
        for link in links:
            with network_process(address, link) as network:
                async with EdgeClient(cloud=network.address, silence_seconds=60) as client:
                    # Both models have drawn something, and the cost model knows how fast, before anything counts.
                    await client.generate(prompts[-1], mode="ecdiff")
                    for repeat in range(repeats):
                        console.print(f"{link}: round {repeat + 1} of {repeats}", highlight=False)
                        start = repeat % len(VARIANTS)
                        for variant in (*VARIANTS[start:], *VARIANTS[:start]):
                            runs.append(await _run(client, link, variant, prompts[repeat], seed=repeat))
    return runs


@contextlib.asynccontextmanager
async def _cloud() -> AsyncIterator[str]:
    """Run a cloud service in a process of its own; yields its address when it serves."""
    cloud = await LocalCloud.start(None, device="cpu", dtype="auto")
    try:
        link = await CloudLink.connect((cloud.address,), Credentials(), wait_seconds=LOAD_SECONDS, keep_trying=True)
        await link.close()
        yield cloud.address
    finally:
        await cloud.stop()


async def _run(client: EdgeClient, link: str, variant: Variant, prompt: str, *, seed: int) -> Run:
    def request(variant: Variant, deadline_ms: float | None = None) -> GenerationRequest:
        options = PlanOptions(**variant.options, deadline_ms=deadline_ms)
        guidance_scale = client.default_guidance_scale
        return GenerationRequest(
            prompt=prompt, mode=variant.mode, seed=seed, plan_options=options, guidance_scale=guidance_scale
        )

    deadline_seconds = None
    if variant.deadline_ratio is not None:
        in_cloud = await client.predict(request(CLOUD))
        deadline_seconds = variant.deadline_ratio * in_cloud.total_seconds
        report = (await client.run(request(variant, 1000 * deadline_seconds))).report
        predicted_seconds, parts = report["deadline"]["predicted_milliseconds"] / 1000, {}
    else:
        estimate = await client.predict(request(variant))
        report = (await client.run(request(variant))).report
        predicted_seconds, parts = estimate.total_seconds, estimate.parts
    _check(report)
    return Run(
        link=link,
        variant=variant.name,
        prompt=prompt,
        deadline_seconds=deadline_seconds,
        predicted_seconds=predicted_seconds,
        measured_seconds=report["seconds"]["total"] - report["seconds"]["connect"],
        parts_predicted=parts,
        parts_measured=report["seconds"],
        cloud_calls=report["nfe"]["cloud"] + report["nfe"]["corrections"],
        handoff_step=report["handoff_step"],
    )


def _check(report: Report) -> None:
    reason = (report["handoff"] or {}).get("reason", "")
    if reason.startswith("cloud_"):
        raise SystemExit(f"error: a run lost its cloud ({reason}); the figures would mean nothing")


# ---------------------------------------------------------------------------------- figures


def results(runs: Sequence[Run], repeats: int, threads: int) -> dict[str, Any]:
    """Return what is written: the medians of each mode and link, and every run."""
    error_ratios = [run.error_ratio for run in runs]
    return {
        "repeats": repeats,
        "threads": threads,
        "bound_ratio": BOUND_RATIO,
        "median_error_ratio": statistics.median(error_ratios),
        "median_error_ratio_interval": quantile_interval(error_ratios, 0.5),
        "rows": [
            {"link": link, "variant": variant, **_medians(found)} for (link, variant), found in _grouped(runs).items()
        ],
        "runs": [asdict(run) for run in runs],
    }


def _grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    grouped: dict[tuple[str, str], list[Run]] = {}
    for variant in VARIANTS:
        for run in runs:
            if run.variant == variant.name:
                grouped.setdefault((run.link, run.variant), []).append(run)
    return {key: grouped[key] for link in LINKS for key in grouped if key[0] == link}


def _medians(runs: Sequence[Run]) -> dict[str, Any]:
    def median(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    deadlines = [run.deadline_seconds for run in runs if run.deadline_seconds is not None]
    return {
        "predicted_seconds": median("predicted_seconds"),
        "measured_seconds": median("measured_seconds"),
        "error_ratio": median("error_ratio"),
        "cloud_calls": median("cloud_calls"),
        "deadline_seconds": statistics.median(deadlines) if deadlines else None,
        "deadlines_met": sum(run.measured_seconds <= (run.deadline_seconds or 0.0) for run in runs),
        "num_runs": len(runs),
    }


def show(runs: Sequence[Run]) -> float:
    """Print the tables; return the median error over all runs."""
    machine = facts()
    title = f"predicted against measured latency, medians; {machine['cpu']}, {machine['num_cpus']} CPUs"
    table = Table(title=f"{title}, {machine['date']}", title_justify="left")
    for name in ("link", "mode", "cloud calls", "predicted s", "measured s", "error", "deadline s", "met"):
        table.add_column(name, justify="left" if name in ("link", "mode") else "right")
    last_link = ""
    for (link, variant), found in _grouped(runs).items():
        if last_link not in ("", link):
            table.add_section()
        row = _medians(found)
        deadline = row["deadline_seconds"]
        table.add_row(
            "" if link == last_link else link,
            variant,
            f"{row['cloud_calls']:.0f}",
            f"{row['predicted_seconds']:.3f}",
            f"{row['measured_seconds']:.3f}",
            f"{100 * row['error_ratio']:.1f} %",
            "" if deadline is None else f"{deadline:.3f}",
            "" if deadline is None else f"{row['deadlines_met']} of {row['num_runs']}",
        )
        last_link = link
    Console(width=120).print(table)
    error_ratios = [run.error_ratio for run in runs]
    low, high = quantile_interval(error_ratios, 0.5)
    middle = statistics.median(error_ratios)
    click.echo(
        f"error: median {100 * middle:.1f} % ({100 * low:.1f}-{100 * high:.1f}), bound {100 * BOUND_RATIO:g} %; "
        f"within the bound {sum(each <= BOUND_RATIO for each in error_ratios)} of {len(runs)} runs"
    )
    return middle


def plot(runs: Sequence[Run], path: Path) -> None:
    """Plot predicted against measured latency."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 6.4), layout="constrained")
    seconds = [each for run in runs for each in (run.predicted_seconds, run.measured_seconds)]
    ends = [0.85 * min(seconds), 1.15 * max(seconds)]
    low, high = ([factor * end for end in ends] for factor in (1 - BOUND_RATIO, 1 + BOUND_RATIO))
    axis.fill_between(ends, low, high, color="0.9", label="within 10 %")
    axis.plot(ends, ends, color="0.6", linewidth=1)
    markers = {"cloud": "s", "edge": "v", "split": "D", "ecdiff": "^", "adaptive": "o", "deadline": "x"}
    for number, link in enumerate(LINKS):
        for kind, marker in markers.items():
            shown = [run for run in runs if run.link == link and run.variant.split(",")[0].split(" ")[0] == kind]
            measured, predicted = [run.measured_seconds for run in shown], [run.predicted_seconds for run in shown]
            axis.scatter(measured, predicted, marker=marker, color=f"C{number}", s=28, alpha=0.7, linewidths=1)
    handles = [
        *(axis.scatter([], [], marker="o", color=f"C{number}", label=link) for number, link in enumerate(LINKS)),
        *(axis.scatter([], [], marker=marker, color="0.3", label=kind) for kind, marker in markers.items()),
    ]
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, s", ylabel="predicted, s")
    ticks = [tick for tick in (0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8, 12) if ends[0] < tick < ends[1]]
    for each in (axis.xaxis, axis.yaxis):
        each.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        each.set_ticks([], minor=True)
    axis.legend(handles=handles, fontsize=8, ncols=2, loc="upper left")
    machine = facts()
    middle = statistics.median(run.error_ratio for run in runs)
    axis.set_title(
        f"Prompt to picture: median error of the prediction {100 * middle:.1f} %\n"
        f"{machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']}; grey: within 10 %",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
