"""What differs between a processor and a GPU: the order of a network's numbers, and when the host waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format_for(device: torch.device) -> torch.memory_format:
    """Return the order in which a network's weights and inputs are kept.

    cuDNN's half-precision convolutions compute on channels-last tensors and copy others forth and back.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def in_memory_format(latents: Tensor) -> Tensor:
    """Return latents in the order that their device wants; only pictures, of four axes, have a choice."""
    return latents.contiguous(memory_format=memory_format_for(latents.device)) if latents.ndim == 4 else latents


def on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Return `values` on a device, `[len(values)]`, float32; the host waits for no GPU."""
    host = torch.tensor(values, dtype=torch.float32)
    # From memory that the driver may not move the copy is queued behind what the GPU still has to do.
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def wait_for(device: torch.device) -> None:
    """Return when a device has done what it was given: a time taken before that is the launch's, not the work's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
