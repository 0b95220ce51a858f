"""`--initial-latents`: noise from a file instead of a seed."""

from __future__ import annotations

import io

import numpy as np

from edge_client.file_content import InputFile
from wire.messages import Array

# numpy's own readers of a header, by the format's version; 3.0 differs in field names, which no such array has.
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_noise(file: InputFile, latents_shape: tuple[int, ...]) -> Array:
    """Read `--initial-latents`.

    Raises:
        ValueError: Not a float array of the latents' shape, or not finite; nothing is allocated for another shape.
        OSError: The file cannot be read.
    """
    content = io.BytesIO(file.read_bytes())
    try:
        version = np.lib.format.read_magic(content)
        if version not in _HEADER_READERS:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = _HEADER_READERS[version](content)
    except ValueError as error:
        raise ValueError(f"{file} is not a .npy array: {error}") from error
    if shape != latents_shape:
        raise ValueError(f"{file} has shape {shape}, this model and size need {latents_shape}")
    if dtype.kind != "f":
        raise ValueError(f"{file} must hold finite floating-point numbers")
    content.seek(0)
    try:
        noise = np.lib.format.read_array(content, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file} is not a .npy array: {error}") from error
    if not np.isfinite(noise).all():
        raise ValueError(f"{file} must hold finite floating-point numbers")
    return np.ascontiguousarray(noise, dtype=np.float32)
