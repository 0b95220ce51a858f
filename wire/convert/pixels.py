"""Pictures as bytes: uint8 RGB, lossless, in one zstd frame; what the cloud decodes for an edge."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from protos import ecdiff_v1_pb2 as pb
from wire.codecs import compressed, decompressed
from wire.errors import CorruptTensor, InvalidTensor

Pixels = NDArray[np.uint8]


def encode_pixels(pixels: Pixels) -> pb.Pixels:
    """Encode pictures `[B, H, W, 3]`, or videos `[B, F, H, W, 3]`, uint8.

    Each byte is written as its difference to that of the pixel on its left: neighbours resemble each other, so the
    compressor finds small numbers.
    """
    pixels = np.ascontiguousarray(pixels)
    differences = pixels.copy()
    differences[..., 1:, :] -= pixels[..., :-1, :]
    return pb.Pixels(shape=pixels.shape, crc32=zlib.crc32(pixels.data), data=compressed(differences.tobytes()))


def decode_pixels(message: pb.Pixels, shape: tuple[int, ...] | None) -> Pixels:
    """Return the pictures, of `shape`, which is compared before anything is allocated; None welcomes none.

    Raises:
        InvalidTensor: They are not welcome, or of another shape.
        CorruptTensor: The bytes do not decode to what is declared.
    """
    if shape is None or tuple(message.shape) != shape:
        raise InvalidTensor(f"pixels must have the shape {shape}, not {tuple(message.shape)}")
    data = decompressed(message.data, math.prod(shape))
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape).cumsum(axis=-2, dtype=np.uint8)
    if zlib.crc32(pixels.data) != message.crc32:
        raise CorruptTensor("the checksum of the pixels is wrong")
    return pixels
