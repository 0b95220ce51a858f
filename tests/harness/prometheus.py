"""Debian's Prometheus with the committed configuration, scraping processes on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.dashboards import Prometheus
from harness.dashboards import PROMETHEUS
from harness.processes import listening_addresses
from harness.programs import Programs
from harness.waiting import wait_until

# As often as it takes for a test of half a minute to have rates; every rule is evaluated as often.
_INTERVAL = "500ms"


def start_prometheus(programs: Programs, folder: Path, targets: Mapping[str, Sequence[str]]) -> RunningPrometheus:
    """Start it on a free port; skips where it is not installed.

    Args:
        programs: Ends it.
        folder: For its configuration and data.
        targets: `HOST:PORT`s by job, instead of the committed ones.
    """
    executable = shutil.which("prometheus")
    if executable is None:
        pytest.skip("prometheus is not installed")
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": _INTERVAL, "evaluation_interval": _INTERVAL}
    assert {job["job_name"] for job in configuration["scrape_configs"]} == set(targets)
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    program = programs.cold(
        "harness.executable",
        executable,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    )

    def address() -> str:
        assert not program.ended, f"Prometheus ended at once: {program.wait().stderr}"
        found = listening_addresses(program.pid)
        return found[0] if found else ""

    running = RunningPrometheus(f"http://{wait_until(address, 'Prometheus to listen')}")
    wait_until(running.is_ready, "Prometheus to be ready")
    return running


class RunningPrometheus:
    """A Prometheus that a test started."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api = Prometheus(url)

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return bool(self.api.ask("query", query="vector(1)")["result"])
        except (OSError, ValueError):  # it listens, but still opens its storage
            return False

    def number(self, query: str) -> float:
        """Return the sum of what a query gives now; 0 where it gives nothing."""
        found = self.api.ask("query", query=query)["result"]
        return sum(float(each["value"][1]) for each in found)

    def targets(self) -> list[dict[str, Any]]:
        """Return what it scrapes."""
        return list(self.api.ask("targets", state="active")["activeTargets"])

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its health."""
        return [rule for group in self.api.ask("rules")["groups"] for rule in group["rules"]]
