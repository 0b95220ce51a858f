"""`edge-client probe`: what a cloud is, and what the way to it is like."""

from __future__ import annotations

import math

from rich.console import Console

from edge_client.cloud_link import BANDWIDTH_BYTES, CloudLink
from edge_client.request import REMOTE_WAIT_SECONDS
from edge_client.terminal import kib
from wire.credentials import Credentials

NUM_PROBES = 20
NUM_TRANSFERS = 3


async def probe_cloud(targets: tuple[str, ...], credentials: Credentials) -> None:
    """Measure and print.

    Raises:
        EcdiffError: It is not SERVING, or not ours.
    """
    link = await CloudLink.connect(targets, credentials, wait_seconds=REMOTE_WAIT_SECONDS)
    try:
        await link.measure(num_probes=NUM_PROBES, num_transfers=NUM_TRANSFERS, transfer_bytes=BANDWIDTH_BYTES)
    finally:
        await link.close()
    estimate, told = link.estimate, link.description
    rtts = [1000 * estimate.rtt_quantile_seconds(quantile) for quantile in (0.0, 0.5, 0.95)]
    bandwidth = estimate.bandwidth_bytes_per_second or math.nan
    model, load = told.model, told.load
    console = Console(highlight=False)
    for name, value in (
        ("cloud", f"{link.address}, SERVING, ecdiff {told.version}, protocol version {told.protocol_version}"),
        (
            "model",
            f"{model.name} ({model.family}, {model.num_parameters / 1e6:.1f} M parameters, "
            f"{model.dtype} on {model.device})",
        ),
        ("load", f"{load.sessions} of {told.limits.max_sessions} sessions, step {1000 * load.step_seconds:.1f} ms"),
        (
            "round trip",
            f"min {rtts[0]:.2f} ms, p50 {rtts[1]:.2f} ms, p95 {rtts[2]:.2f} ms ({estimate.num_probes} probes)",
        ),
        (
            "clock offset",
            f"{1000 * estimate.clock_offset_seconds:+.2f} ms "
            f"+- {1000 * estimate.clock_offset_uncertainty_seconds:.2f} ms",
        ),
        ("bandwidth", f"{8 * bandwidth / 1e6:.0f} Mbit/s towards the edge ({NUM_TRANSFERS} x {kib(BANDWIDTH_BYTES)})"),
    ):
        console.print(f"{name:>13}  {value}", soft_wrap=True, markup=False)
