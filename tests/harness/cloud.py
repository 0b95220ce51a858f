"""A running `cloud-service serve`, as the tests handle it."""

from __future__ import annotations

import re
from pathlib import Path

from harness.gate import Gate
from harness.programs import Program
from harness.scrape import Scrape
from harness.waiting import wait_until

LISTENING = re.compile(r"cloud-service listening on (\S+) metrics on (\S+)")
SOURCES = ("cloud", "extrapolated", "correction")


class Cloud:
    """One service process; `unet` and `text_encoder` hold it at a forward pass, where it was started with gates."""

    def __init__(self, program: Program, gates: Path | None = None) -> None:
        self.program = program
        self.address, self.metrics_address = wait_until(lambda: _addresses(program), "the cloud's listening line")
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


def _addresses(program: Program) -> tuple[str, str] | None:
    assert not program.ended, f"the cloud ended at once: {program.wait().stderr}"
    match = LISTENING.search(program.stdout)
    return (match[1], match[2]) if match else None
