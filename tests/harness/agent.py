"""A running `edge-client serve`, and commands that find it, as the tests handle them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc

from edge_client.agent.config import AGENT_CHANNEL_OPTIONS
from harness.gate import Gate
from harness.programs import Program
from harness.scrape import Scrape
from harness.waiting import wait_until
from protos import edge_agent_v1_pb2 as pb
from protos.edge_agent_v1_pb2_grpc import EdgeAgentStub

LISTENING = re.compile(r"edge-agent listening on (\S+) metrics on (\S+)\n")
SERVING = re.compile(r"edge-agent serving ")


class Agent:
    """One agent process; `unet` holds it at a forward pass of the edge model, where it was started with gates."""

    def __init__(self, program: Program, gates: Path | None = None) -> None:
        self.program = program
        match = wait_until(lambda: self._first(LISTENING), "the agent's first line")
        self.address, self.metrics_address = match[1], match[2]
        wait_until(lambda: self._first(SERVING), "the agent to serve")
        if gates is not None:
            self.unet = Gate(gates, "unet")

    def _first(self, line: re.Pattern[str]) -> re.Match[str] | None:
        assert not self.program.ended, f"the agent ended at once: {self.program.wait().stderr}"
        return line.search(self.program.stdout)

    def scrape(self) -> Scrape:
        """Fetch its metrics."""
        return Scrape.of(self.metrics_address)

    def ask(self, call: Callable[[EdgeAgentStub], object]) -> object:
        """Call it as an app would."""
        with grpc.insecure_channel(self.address, options=AGENT_CHANNEL_OPTIONS) as channel:
            return call(EdgeAgentStub(channel))

    def status(self, *, want_prompts: bool = False) -> pb.AgentStatus:
        """Ask for its status."""
        request = pb.AgentStatusRequest(want_prompts=want_prompts)
        answer = self.ask(lambda stub: stub.Status(request, timeout=30))
        assert isinstance(answer, pb.AgentStatus)
        return answer

    def queue(self) -> list[str]:
        """Return the request ids in the queue, the running one first."""
        return [each.request_id for each in self.status().generations]

    def num_done(self, **labels: str) -> float:
        """Return how many generations ended so."""
        return self.scrape().value("ecdiff_generations_total", **labels)


class StartAgent(Protocol):
    """The fixture `start_agent`."""

    def __call__(self, *arguments: str | Path) -> Agent:
        """Start an agent with these arguments of `edge-client serve`."""


class StartCommand(Protocol):
    """The fixture `start_command`."""

    def __call__(self, agent: Agent, *arguments: str | Path) -> Program:
        """Start `edge-client` with these arguments; it finds this agent."""
