"""Edges of the tiny model with an orchestrator, for the tests of both."""

from __future__ import annotations

from typing import Any

from edge_client import EdgeClient
from harness.orchestrator import Orchestrator
from harness.reference import EDGE_MODEL
from harness.searched import STEPS

PROMPT = "a cat"


def edge(orchestrator: Orchestrator | str, **options: Any) -> EdgeClient:
    address = orchestrator if isinstance(orchestrator, str) else orchestrator.address
    return EdgeClient(orchestrator=address, edge_model=str(EDGE_MODEL), silence_seconds=60, **options)


async def make(client: EdgeClient, **options: Any) -> dict[str, Any]:
    """Generate; return the report."""
    options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, **options}
    return (await client.generate(PROMPT, **options)).report
