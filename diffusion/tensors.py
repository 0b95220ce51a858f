"""Torch tensors as numpy arrays and back, bfloat16 included (numpy has none, `ml_dtypes` lends one)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return `tensor` as a contiguous CPU array of the same dtype and bits."""
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.view(torch.uint16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: NDArray[Any] = tensor.numpy()
    return array


def from_array(array: NDArray[Any]) -> torch.Tensor:
    """Return a CPU tensor of the same dtype and bits; it owns its memory."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
