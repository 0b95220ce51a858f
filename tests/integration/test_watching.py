"""What an operator sees: the three services under Debian's Prometheus with the committed configuration."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.dashboards.panels import DASHBOARDS
from harness.agent import Agent
from harness.cloud import Cloud
from harness.dashboards import PROMETHEUS, all_rules, queries_without_data
from harness.gate import Gate
from harness.programs import Program, Programs
from harness.prometheus import RunningPrometheus, start_prometheus
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.scrape import Scrape, check_with_promtool
from harness.waiting import wait_until

ROOT = PROMETHEUS.parents[1]
FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
ORCHESTRATOR = re.compile(r"orchestrator listening on (\S+) metrics on (\S+)\norchestrator serving ")
STEPS = ("--num-inference-steps", "10")
GENERATIONS = {
    "cloud": STEPS,
    "edge": STEPS,
    "split": ("--steps", "6,4"),
    "ecdiff": (*STEPS, "--handoff-step", "8"),
    "adaptive": (*STEPS, "--deadline-ms", "60000", "--corrections", "final"),
}


@dataclass(frozen=True, kw_only=True)
class System:
    """The services, and who watches them."""

    started: float
    clouds: tuple[Cloud, Cloud]
    programs: Programs
    agent: Agent
    prometheus: RunningPrometheus
    folder: Path

    def generate(self, mode: str) -> Program:
        """Start a generation through the agent; its report is MODE.json."""
        report = self.folder / f"{mode}.json"
        command = ("generate", "x", "--mode", mode, *GENERATIONS[mode], "--report", str(report), "--quiet")
        environment = {"ECDIFF_AGENT": self.agent.address}
        return self.programs.forked("edge_client", *command, folder=self.folder, environment=environment)

    def report(self, mode: str) -> Any:
        """Return the report of the newest generation in a mode."""
        return json.loads((self.folder / f"{mode}.json").read_text())

    def wait_for_two_scrapes(self) -> None:
        """Wait until every number that there is now has been scraped, and once more for a rate."""
        scraped = "min(count_over_time(up[10m]))"
        enough = self.prometheus.number(scraped) + 2
        wait_until(lambda: self.prometheus.number(scraped) >= enough, "two scrapes of every target")


@pytest.fixture(scope="module")
def system(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two clouds, an orchestrator that knows them, an agent that knows the orchestrator, and Prometheus."""
    folder = tmp_path_factory.mktemp("watching")
    started: list[Program] = []

    def start(module: str, *arguments: str, gate: Path | None = None) -> Program:
        started.append(programs.forked(module, "serve", *FREE_PORTS, *arguments, gate=gate))
        return started[-1]

    gates = folder / "first", folder / "second"
    for each in gates:
        Gate.create(each)
    starting = [start("cloud_service", "--model", str(CLOUD_MODEL), gate=each) for each in gates]
    first, second = (Cloud(*each) for each in zip(starting, gates, strict=True))
    orchestrator = start("orchestrator", "--cloud", f"{first.address},{second.address}")
    at = wait_until(lambda: ORCHESTRATOR.match(orchestrator.stdout), "the orchestrator to serve")
    agent = Agent(start("edge_client", "--edge-model", str(EDGE_MODEL), "--orchestrator", at[1]))
    prometheus = start_prometheus(
        programs,
        folder,
        {
            "cloud": [first.metrics_address, second.metrics_address],
            "edge": [agent.metrics_address],
            "orchestrator": [at[2]],
        },
    )
    wait_until(lambda: prometheus.number("sum(up)") == 4, "every target to be scraped")
    yield System(
        started=time.time(),
        clouds=(first, second),
        programs=programs,
        agent=agent,
        prometheus=prometheus,
        folder=folder,
    )
    for program in started:
        program.kill()


@pytest.fixture(scope="module")
def used(system: System) -> System:
    """The same after generations in every mode."""
    for _ in range(2):  # a series that comes into being has no rate before it moves again
        for mode in GENERATIONS:
            ended = system.generate(mode).wait()
            assert ended.returncode == 0, ended.stderr
        system.wait_for_two_scrapes()
    return system


@pytest.fixture(scope="module")
def abandoned(used: System) -> System:
    """The same after a generation that lost its cloud on the way and found no other: both are killed."""
    for cloud in used.clouds:
        cloud.unet.hold_after(3)
    generation = used.generate("cloud")
    wait_until(lambda: any(cloud.unet.holding for cloud in used.clouds), "a cloud at its 4th step")
    for cloud in sorted(used.clouds, key=lambda cloud: cloud.unet.holding):  # the idle one first
        cloud.program.kill()
    ended = generation.wait()
    assert ended.returncode == 0, ended.stderr
    used.wait_for_two_scrapes()
    return used


def test_every_job_is_scraped(system: System) -> None:
    assert {target["labels"]["job"] for target in system.prometheus.targets()} == {"cloud", "edge", "orchestrator"}


def test_every_query_of_every_dashboard_has_data(used: System) -> None:
    assert queries_without_data(used.prometheus.url, time.time() - used.started) == []


def test_bench_dashboards_draws_every_panel(used: System) -> None:
    command = [sys.executable, "-m", "bench.dashboards", "--prometheus", used.prometheus.url]
    minutes = f"{(time.time() - used.started) / 60:.3f}"
    ran = subprocess.run(
        [*command, "-o", str(used.folder), "--minutes", minutes], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    wrote = {used.folder / f"{path.stem}.png" for path in DASHBOARDS.glob("*.json")}
    assert set(ran.stdout.splitlines()) == {f"wrote {path}" for path in wrote}
    assert all(path.stat().st_size > 10_000 for path in wrote)


def test_promtool_has_nothing_against_what_is_scraped(used: System) -> None:
    for target in used.prometheus.targets():
        check_with_promtool(Scrape.of(target["labels"]["instance"]).text)


def test_lost_clouds_are_seen_from_everywhere(abandoned: System) -> None:
    assert abandoned.report("cloud")["handoff"]["reason"] == "cloud_lost"
    number = abandoned.prometheus.number
    assert number('sum(ecdiff_handoffs_total{reason="cloud_lost"})') == 1
    assert number('sum(ecdiff_generations_total{mode="cloud", outcome="fallback"})') == 1
    assert number('sum(ecdiff_fleet_generations_total{mode="cloud", outcome="fallback"})') == 1
    assert number('sum(up{job="cloud"})') == 0
    wait_until(lambda: number("sum(ecdiff_fleet_replica_up)") == 0, "the orchestrator to miss the replicas")


def test_rules_are_in_order_and_alerts_say_what_happened(abandoned: System) -> None:
    rules = abandoned.prometheus.rules()
    assert len(rules) == len(all_rules())
    assert [rule for rule in rules if rule["health"] != "ok" or rule.get("lastError")] == []

    def begun() -> set[str]:
        found = abandoned.prometheus.rules()
        return {rule["name"] for rule in found if rule.get("state", "inactive") != "inactive"}

    gone = {"EcdiffTargetDown", "EcdiffReplicaDown", "EcdiffNoReplicaUp"}
    wait_until(lambda: gone <= begun(), "the alerts of clouds that are gone")
    assert not begun() & {"EcdiffCloudLost", "EcdiffGenerationsFail", "EcdiffRequestsRefused", "EcdiffFleetFull"}
