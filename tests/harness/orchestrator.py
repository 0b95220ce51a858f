"""A running `orchestrator serve`, as the tests handle it."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.programs import Program
from harness.scrape import Scrape
from harness.waiting import wait_until
from orchestrator.client import OrchestratorClient
from wire.credentials import Credentials
from wire.fleet_messages import FleetStatus, Replica

# The first line names the ports; the second one comes when it has looked at plans and replicas.
SERVING = re.compile(r"orchestrator listening on (\S+) metrics on (\S+)\norchestrator serving ")

T = TypeVar("T")


class Orchestrator:
    """One service process."""

    def __init__(self, program: Program) -> None:
        self.program = program
        match = wait_until(lambda: _first_lines(program), "the orchestrator's first lines")
        self.address, self.metrics_address = match[1], match[2]

    def scrape(self) -> Scrape:
        """Fetch its metrics."""
        return Scrape.of(self.metrics_address)

    async def ask(
        self, call: Callable[[OrchestratorClient], Coroutine[Any, Any, T]], credentials: Credentials | None = None
    ) -> T:
        """Make one call of a client."""
        client = OrchestratorClient(self.address, credentials or Credentials())
        try:
            return await call(client)
        finally:
            await client.close()

    async def status(self) -> FleetStatus:
        """Return what it knows."""
        return await self.ask(lambda client: client.fleet_status())

    async def replicas(self) -> dict[str, Replica]:
        """Return its replicas by their addresses."""
        return {each.address: each for each in (await self.status()).replicas}

    def is_up(self, replica: str) -> bool:
        """Whether it says that a replica serves."""
        return bool(self.scrape().value("ecdiff_fleet_replica_up", replica=replica))

    def loaded(self) -> str:
        """Return what is mapped into its memory: the libraries that it has loaded."""
        return Path(f"/proc/{self.program.pid}/maps").read_text()


def _first_lines(program: Program) -> re.Match[str] | None:
    assert not program.ended, f"the orchestrator ended at once: {program.wait().stderr}"
    return SERVING.match(program.stdout)


class StartOrchestrator(Protocol):
    """The fixture `start_orchestrator`."""

    def __call__(self, *arguments: str | Path) -> Orchestrator:
        """Start a service with these arguments of `orchestrator serve`."""
