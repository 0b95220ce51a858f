"""The edge: the small model, the client of the cloud, the command line.

`from edge_client import EdgeClient` is the Python API. It is loaded on first use, because it brings torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.generation import GenerationResult
    from wire.credentials import Credentials

__all__ = ["Credentials", "EdgeClient", "GenerationResult"]

# Read when grpc and torch are imported. Nothing forks beside gRPC's threads here; and two services on one machine:
# an OpenMP thread that spins while it waits takes the core that the other one needs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "EdgeClient": "edge_client.client",
    "Credentials": "wire.credentials",
    "GenerationResult": "edge_client.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
