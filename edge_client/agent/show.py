"""`edge-client status`: the agent of this machine, as a small table."""

from __future__ import annotations

from collections.abc import Iterator

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_client.agent.address import agent_address
from edge_client.agent.connection import AgentConnection, AgentLost
from edge_client.terminal import milliseconds
from protos import edge_agent_v1_pb2 as pb
from wire.errors import NotServing


async def show_status(*, want_prompts: bool) -> None:
    """Ask the agent and print what it says.

    Raises:
        NotServing: There is none.
        click.UsageError: The environment names no address of this machine.
    """
    address, _ = agent_address()
    if address is None:
        raise click.UsageError("ECDIFF_AGENT is set to nothing, which means no agent: unset it, or name one")
    async with AgentConnection(str(address)) as agent:
        try:
            status = await agent.status(want_prompts=want_prompts)
        except AgentLost as lost:
            raise NotServing(f"{lost}: start one with edge-client serve") from None
    console = Console(highlight=False)
    for name, value in _lines(str(address), status):
        console.print(f"{name:>13}  {value}", soft_wrap=True, markup=False)
    if status.generations:
        console.print(_queue_table(status, want_prompts=want_prompts))


def _lines(address: str, status: pb.AgentStatus) -> Iterator[tuple[str, str]]:
    yield "agent", f"{address}, {status.state}, ecdiff {status.version}"
    if status.HasField("edge_model"):
        edge = status.edge_model
        yield "edge model", f"{edge.name} ({edge.dtype} on {edge.device}), step {milliseconds(edge.step_seconds)} ms"
    cloud = status.cloud
    if not cloud.address:
        yield "cloud", f"none: {cloud.problem}"
    else:
        yield "cloud", f"{cloud.address}: {cloud.model} ({cloud.dtype} on {cloud.device})"
    if cloud.rtt_seconds:
        offset, bound = 1000 * cloud.clock_offset_seconds, 1000 * cloud.clock_offset_uncertainty_seconds
        yield "round trip", f"{1000 * cloud.rtt_seconds:.2f} ms, clock offset {offset:+.2f} ms +- {bound:.2f} ms"
    if status.settings.orchestrator:
        yield "orchestrator", status.settings.orchestrator
    num_waiting = max(0, len(status.generations) - 1)
    yield "queue", f"{'idle' if not status.generations else 'at work'}, {num_waiting} of {status.max_queue} waiting"


def _queue_table(status: pb.AgentStatus, *, want_prompts: bool) -> Table:
    table = Table(pad_edge=False)
    for name in ("request", "mode", "phase", "step", "seconds", *(["prompt"] if want_prompts else [])):
        table.add_column(name, justify="right" if name in ("step", "seconds") else "left")
    for each in status.generations:
        cells = [
            each.request_id,
            each.mode,
            each.phase,
            f"{each.num_steps_done}/{each.num_inference_steps}",
            f"{each.seconds:.1f}",
        ]
        # Text: whatever a prompt holds is no markup.
        table.add_row(*map(Text, [*cells, each.prompt] if want_prompts else cells))
    return table
