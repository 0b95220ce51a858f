"""`--initial-latents`: noise from a file instead of a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wire.messages import Array


def read_noise(path: Path, latents_shape: tuple[int, ...]) -> Array:
    """Read `--initial-latents`.

    Raises:
        ValueError: Not a float array of the latents' shape, or not finite.
        OSError: The file cannot be read.
    """
    try:
        noise = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy array: {error}") from error
    if noise.shape != latents_shape:
        raise ValueError(f"{path} has shape {noise.shape}, this model and size need {latents_shape}")
    if noise.dtype.kind != "f" or not np.isfinite(noise).all():
        raise ValueError(f"{path} must hold finite floating-point numbers")
    return np.ascontiguousarray(noise, dtype=np.float32)
