"""`orchestrator status`, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from orchestrator.client import OrchestratorClient
from wire.credentials import Credentials
from wire.fleet_messages import FleetStatus, Replica

_WIDTH = 130


async def show_status(address: str, credentials: Credentials) -> None:
    """Print what an orchestrator knows.

    Raises:
        EcdiffError: It does not answer.
        OSError: A certificate cannot be read.
    """
    client = OrchestratorClient(address, credentials)
    try:
        status = await client.fleet_status()
    finally:
        await client.close()
    console = Console(highlight=False, width=_WIDTH)
    console.print(
        f"orchestrator at {address}, ecdiff {status.version}, up {status.uptime_seconds:.0f} s: "
        f"{status.num_plans_handed_out} plans handed out, {status.num_reports} generations reported",
        soft_wrap=True,
        markup=False,
    )
    console.print(replicas_table(status))
    console.print(plans_table(status))


def replicas_table(status: FleetStatus) -> Table:
    """Return the replicas with what is known of them."""
    table = Table(title="replicas", title_justify="left", header_style="bold", pad_edge=False)
    table.add_column("address")
    table.add_column("state")
    table.add_column("model")
    for name in ("sessions", "queue", "step ms", "round trip ms", "wait s", "measured / predicted", "reports"):
        table.add_column(name, justify="right")
    for each in status.replicas:
        table.add_row(*_cells(each))
    return table


def _cells(replica: Replica) -> tuple[str, ...]:
    model, rtt_seconds = replica.model, replica.rtt_seconds
    return (
        f"{replica.address} ({replica.name})" if replica.name else replica.address,
        "up" if replica.is_up else "down",
        model.name if model is not None else "-",
        f"{replica.load.sessions} of {replica.max_sessions}" if replica.is_up else "-",
        str(replica.load.queue) if replica.is_up else "-",
        f"{1000 * replica.step_seconds:.1f}" if replica.step_seconds else "-",
        "-" if rtt_seconds is None else f"{1000 * rtt_seconds:.1f}",
        f"{replica.wait_seconds:.2f}" if replica.is_up else "-",
        f"{replica.calibration:.2f}",
        str(replica.num_reports),
    )


def plans_table(status: FleetStatus) -> Table:
    """Return the plan files, or why one is not used."""
    table = Table(title="plan files", title_justify="left", header_style="bold", pad_edge=False)
    for name in ("file", "scheduler", "steps", "guidance", "plans", "cloud model", "edge model"):
        table.add_column(name, justify="right" if name in ("steps", "guidance", "plans") else "left")
    for each in status.plan_files:
        if each.problem:
            table.add_row(each.name, f"not used: {each.problem}")
        else:
            table.add_row(
                each.name,
                each.scheduler,
                str(each.num_inference_steps),
                f"{each.guidance_scale:g}",
                str(each.num_plans),
                each.cloud_fingerprint[:12],
                each.edge_fingerprint[:12],
            )
    return table
