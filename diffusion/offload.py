"""Weights that wait in the machine's memory until a GPU with little of its own computes with them.

Both ways are hooks of accelerate, as diffusers' `enable_model_cpu_offload` and `enable_sequential_cpu_offload` use
them: `model` keeps one part (a text encoder, the denoising network, the VAE) on the GPU at a time, `sequential` one
layer. The first costs a copy where another part begins, the second one for every layer of every step.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module

OFFLOADS = ("none", "model", "sequential")


class Offload:
    """Where the parts of one model wait, and how they come to the device.

    Args:
        how: One of `OFFLOADS`.
        device: Where they compute.

    Raises:
        ValueError: An unknown name, or a processor, for which nothing is moved.
    """

    def __init__(self, how: str, device: torch.device) -> None:
        if how not in OFFLOADS:
            raise ValueError(f"offload must be one of {', '.join(OFFLOADS)}, not {how!r}")
        if how != "none" and device.type == "cpu":
            raise ValueError(
                f"--offload {how} keeps weights out of a GPU's memory, and this model runs on the processor: leave it "
                "out"
            )
        self._how, self._device = how, device
        self._waiting: list[Any] | None = []
        self._parts: list[Any] = []

    def place(self, part: Any) -> Any:
        """Return a part that was just loaded, where it belongs; before `begin` one that will move is only kept."""
        if self._how == "none":
            return part.to(self._device)
        if self._waiting is None:
            self._attach(part)
        else:
            self._waiting.append(part)
        return part

    def begin(self) -> None:
        """Let the parts move from now on: nobody changes their weights any more."""
        waiting, self._waiting = self._waiting or [], None
        for part in waiting:
            self._attach(part)

    def _attach(self, part: Any) -> None:
        self._parts.append(part)
        if self._how == "sequential":
            # Parameters of the part itself, in no layer, come with their buffers, as in diffusers.
            cpu_offload(part, self._device, offload_buffers=bool(part._parameters))
        else:
            add_hook_to_module(part, _OneOfSeveral(self._device, self._parts), append=True)


class _OneOfSeveral(CpuOffload):  # type: ignore[misc]  # accelerate has no types
    """Brings a part to the device, and the others away from it.

    Args:
        device: Where it computes.
        parts: All of them, those that are yet to come too.
    """

    def __init__(self, device: torch.device, parts: list[Any]) -> None:
        super().__init__(device)
        self._parts = parts

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        for part in self._parts:
            if part is not module:
                part.to("cpu")
        return super().pre_forward(module, *args, **kwargs)
