"""Holding a service at a chosen network evaluation, so that faults come at a step and not at a time.

The process under test runs its own code, unchanged; only the forward pass of the real network waits here. A small
shared file says how many forward passes may run. Steps that need none (extrapolated ones) are not held.
"""

from __future__ import annotations

import functools
import mmap
import struct
import time
from pathlib import Path
from typing import Any

_FIELDS = ("allowed", "done", "waiting")
_NUMBER = struct.Struct("<q")
_NO_END = 2**62
_POLL_SECONDS = 0.002
PARTS = ("unet", "text_encoder")


class Gate:
    """One part of a model, as the test and the process under test see it; each field has one writer.

    Args:
        path: The shared file; `Gate.create` makes it.
        part: One of `PARTS`.
    """

    def __init__(self, path: Path, part: str) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._offset = PARTS.index(part) * len(_FIELDS) * _NUMBER.size

    @staticmethod
    def create(path: Path) -> None:
        """Make the file, with every gate open."""
        path.write_bytes((_NUMBER.pack(_NO_END) + _NUMBER.pack(0) * 2) * len(PARTS))

    def _get(self, field: str) -> int:
        return int(_NUMBER.unpack_from(self._memory, self._offset + _FIELDS.index(field) * _NUMBER.size)[0])

    def _set(self, field: str, value: int) -> None:
        _NUMBER.pack_into(self._memory, self._offset + _FIELDS.index(field) * _NUMBER.size, value)

    # ------------------------------------------------------------------------------ the test

    def hold_after(self, count: int) -> None:
        """Let `count` more forward passes run, then hold the next."""
        self._set("allowed", self._get("done") + count)

    def open(self) -> None:
        """Hold nothing any more."""
        self._set("allowed", _NO_END)

    @property
    def done(self) -> int:
        """Forward passes that were let through."""
        return self._get("done")

    @property
    def holding(self) -> bool:
        """Whether a forward pass waits now."""
        return bool(self._get("waiting"))

    # ------------------------------------------------------------------------------ the process under test

    def pass_through(self) -> None:
        """Wait until the next forward pass is allowed."""
        while self._get("done") >= self._get("allowed"):
            self._set("waiting", 1)
            time.sleep(_POLL_SECONDS)
        self._set("waiting", 0)
        self._set("done", self._get("done") + 1)


def install(path: Path) -> None:
    """Put the gates of `path` before the real networks of this process."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    networks: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    for part, network in networks.items():
        _put_before(network, Gate(path, part))


def _put_before(network: Any, gate: Gate) -> None:
    forward = network.forward

    @functools.wraps(forward)
    def gated(*args: Any, **kwargs: Any) -> Any:
        gate.pass_through()
        return forward(*args, **kwargs)

    network.forward = gated
