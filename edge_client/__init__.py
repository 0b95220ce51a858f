"""The edge: the small model, the client of the cloud, the command line.

`from edge_client import EdgeClient` is the Python API. It is loaded on first use, because it brings torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.cloud_link import Credentials
    from edge_client.generation import GenerationResult

__all__ = ["Credentials", "EdgeClient", "GenerationResult"]

_HOMES = {
    "EdgeClient": "edge_client.client",
    "Credentials": "edge_client.cloud_link",
    "GenerationResult": "edge_client.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
