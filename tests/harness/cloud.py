"""A running `cloud-service serve`, as the tests handle it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from harness.gate import Gate
from harness.programs import Finished, Program
from harness.reference import CLOUD_MODEL
from harness.scrape import Scrape
from harness.waiting import wait_until

# The first line names the ports; the second one comes when the model is loaded and warm.
SERVING = re.compile(r"cloud-service listening on (\S+) metrics on (\S+)\ncloud-service serving ")
SOURCES = ("cloud", "extrapolated", "correction")


class Cloud:
    """One service process; `unet` and `text_encoder` hold it at a forward pass, where it was started with gates."""

    def __init__(self, program: Program, gates: Path | None = None) -> None:
        self.program = program
        match = wait_until(lambda: _first_lines(program), "the cloud's first lines")
        self.address, self.metrics_address = match[1], match[2]
        if gates is not None:
            self.unet, self.text_encoder = Gate(gates, "unet"), Gate(gates, "text_encoder")

    def scrape(self) -> Scrape:
        """Fetch its metrics."""
        return Scrape.of(self.metrics_address)

    def nfe(self) -> dict[str, int]:
        """Return the count of steps by source."""
        scrape = self.scrape()
        return {source: int(scrape.value("ecdiff_nfe_total", source=source)) for source in SOURCES}

    def num_sessions(self) -> int:
        """Return how many sessions are open."""
        return int(self.scrape().value("ecdiff_cloud_sessions"))

    def is_empty(self) -> bool:
        """Whether no session is open."""
        return self.num_sessions() == 0


def _first_lines(program: Program) -> re.Match[str] | None:
    assert not program.ended, f"the cloud ended at once: {program.wait().stderr}"
    return SERVING.match(program.stdout)


class StartCloud(Protocol):
    """The fixture `start_cloud`."""

    def __call__(self, *arguments: str, model: Path = CLOUD_MODEL) -> Cloud:
        """Start a service with these arguments of `cloud-service serve`."""


class RunEdge(Protocol):
    """The fixture `run_edge`."""

    def __call__(self, *arguments: str | Path, file_limit_bytes: int = 0) -> Finished:
        """Run `edge-client` with these arguments."""
