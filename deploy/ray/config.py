"""What the cloud service on Ray Serve is told beside a plain one's options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from wire.channel import MAX_MESSAGE_BYTES

_CHECKOUT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MAX_MESSAGE_BYTES),
    # Each line of a replica's log is told.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
}


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How many replicas there are, and where.

    Attributes:
        port: Where Ray's gRPC proxies listen, on every address of their machines.
        min_replicas: Fewest replicas.
        max_replicas: Most replicas.
        upscale_seconds: How long there must be too many sessions before a replica is started.
        downscale_seconds: How long there must be too few before one is stopped.
        cpus_per_replica: What Ray sets aside of a machine for each.
        gpus_per_replica: The same; without, a replica sees no GPU.
        cluster: Address of a running Ray; None starts one on this machine, on its loopback address.

    Raises:
        ValueError: It cannot be so.
    """

    port: int
    min_replicas: int = 1
    max_replicas: int = 1
    upscale_seconds: float = 10.0
    downscale_seconds: float = 300.0
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    cluster: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(f"replicas are MIN:MAX with 1 <= MIN <= MAX, not {self.min_replicas}:{self.max_replicas}")


def prepare_environment() -> None:
    """Set what Ray reads at its import and where its workers and proxies start; one's own values win."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # The workers import this package, whatever folder they start in.
    paths = [str(_CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
