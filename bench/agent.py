"""How ready a warm agent is, and what it saves a command: `python -m bench.agent`.

One `edge-client serve` with the bundled pair and a cloud service of its own. Two figures:

1. From a request's arrival at the idle agent to the start of its first step, in each mode: the edge model's own start,
   or the arrival of the cloud's first step less what it computed. The agent measures it itself; the first requests
   count too. Above the bar the bench exits 1.
2. The whole time of an `edge-client generate` command, from its start to its end, with the agent and without it,
   alternating.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import grpc
from rich.console import Console
from rich.table import Table

from bench.intervals import quantile_interval, ratio_interval
from bench.machine import RESULTS, machine_line, write_results
from edge_client.agent.config import AGENT_CHANNEL_OPTIONS
from models import read_prompts
from orchestrator.plan import MODES
from protos import edge_agent_v1_pb2 as pb
from protos.edge_agent_v1_pb2_grpc import EdgeAgentStub

BAR_SECONDS = 0.150
NUM_STEPS = 20
COMMAND_MODES = ("edge", "adaptive")
CALL_SECONDS = 120.0
FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")


@click.command()
@click.option("--requests", type=click.IntRange(3), default=20, show_default=True, help="Requests a mode.")
@click.option("--commands", type=click.IntRange(2), default=5, show_default=True, help="Pairs of commands a mode.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(requests: int, commands: int, output: Path) -> None:
    """Measure how soon a warm agent starts, and what a command takes with it and without."""
    console = Console(stderr=True, highlight=False)
    with running_agent() as address:
        starts = {}
        for mode in MODES:
            console.print(f"{mode}: {requests} requests")
            starts[mode] = start_seconds(address, mode, requests)
        whole = {}
        for mode in COMMAND_MODES:
            console.print(f"{mode}: {commands} pairs of commands")
            whole[mode] = command_seconds(address, mode, commands)
    results = {
        "bar_seconds": BAR_SECONDS,
        "num_inference_steps": NUM_STEPS,
        "start_seconds": {mode: _summary(values) for mode, values in starts.items()},
        "command_seconds": {
            mode: {
                **values,
                "ratio": statistics.fmean(values["without"]) / statistics.fmean(values["with"]),
                "ratio_interval": ratio_interval(values["without"], values["with"]),
            }
            for mode, values in whole.items()
        },
    }
    _print(results)
    click.echo(f"wrote {write_results('agent', results, output)}")
    slowest = max(max(values) for values in starts.values())
    if slowest > BAR_SECONDS:
        raise SystemExit(f"error: a first step began {1000 * slowest:.0f} ms after its request, above the bar")


@contextmanager
def running_agent() -> Iterator[str]:
    """Start an agent with the bundled pair; yield its address once it serves."""
    command = [sys.executable, "-m", "edge_client", "serve", *FREE_PORTS, "--exit-with-stdin", "--log-level", "error"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[3]
        if not process.stdout.readline():
            raise SystemExit("error: the agent ended before it served")
        yield address
    finally:
        process.stdin.close()
        process.wait()


def start_seconds(address: str, mode: str, count: int) -> list[float]:
    """Return how long each request waited for its first step."""
    seconds = []
    with grpc.insecure_channel(address, options=AGENT_CHANNEL_OPTIONS) as channel:
        stub = EdgeAgentStub(channel)
        for seed, prompt in enumerate(read_prompts("report")[:count]):
            options = pb.GenerateRequest.PlanOptions(num_inference_steps=NUM_STEPS)
            request = pb.GenerateRequest(prompt=prompt, mode=mode, seed=seed, plan_options=options)
            *_, last = stub.Generate(request, timeout=CALL_SECONDS)
            report = json.loads(last.done.report)
            if report["fallbacks"]:
                raise SystemExit(f"error: {mode} did not run as planned: {report['fallbacks']}")
            seconds.append(last.done.queue_seconds + last.done.start_seconds)
    return seconds


def command_seconds(address: str, mode: str, count: int) -> dict[str, list[float]]:
    """Return what each command took, with the agent and without it."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for repeat, prompt in enumerate(read_prompts("report")[:count]):
        order = ("with", "without") if repeat % 2 else ("without", "with")
        for name in order:
            seconds[name].append(_command(address, prompt, mode, with_agent=name == "with"))
    return seconds


def _command(address: str, prompt: str, mode: str, *, with_agent: bool) -> float:
    words = ["generate", prompt, "--mode", mode, "--num-inference-steps", str(NUM_STEPS), "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        files = ["-o", f"{folder}/out.png", "--report", f"{folder}/report.json"]
        command = [sys.executable, "-m", "edge_client", *words, *files, *([] if with_agent else ["--no-agent"])]
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "ECDIFF_AGENT": address})
        taken = time.perf_counter() - started
        made_by = json.loads(Path(folder, "report.json").read_text())["agent"]
    if made_by != (address if with_agent else None):
        raise SystemExit(f"error: the picture was made by {made_by}")
    return taken


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "seconds": values,
        "p50": statistics.median(values),
        "p50_interval": quantile_interval(values, 0.5),
        "most": max(values),
    }


def _print(results: dict[str, Any]) -> None:
    title = f"warm agent; {machine_line()}"
    starts = Table(title=title, title_justify="left")
    for name in ("mode", "request to first step, ms (p50)", "95 % interval", "most", "bar"):
        starts.add_column(name, justify="left" if name == "mode" else "right")
    for mode, found in results["start_seconds"].items():
        low, high = found["p50_interval"]
        interval = f"{1000 * low:.1f}-{1000 * high:.1f}"
        starts.add_row(mode, f"{1000 * found['p50']:.1f}", interval, f"{1000 * found['most']:.1f}", "150")
    whole = Table(title="edge-client generate, start to end", title_justify="left")
    for name in ("mode", "without s", "with s", "without / with", "95 % interval"):
        whole.add_column(name, justify="left" if name == "mode" else "right")
    for mode, found in results["command_seconds"].items():
        means = [f"{statistics.fmean(found[name]):.2f}" for name in ("without", "with")]
        whole.add_row(mode, *means, f"{found['ratio']:.1f}", "{:.1f}-{:.1f}".format(*found["ratio_interval"]))
    console = Console(width=120)
    console.print(starts)
    console.print(whole)


if __name__ == "__main__":
    main()
