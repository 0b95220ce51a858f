"""Codecs: how a tensor's bytes are written, one class for each member of `Codec`.

A codec sees a flat array and knows nothing of shapes, caps or checksums; `wire.tensors` checks all of
those, before it for what is declared and after it for what came out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from wire.errors import CorruptTensor
from wire.messages import Array, Codec

ZSTD_LEVEL = 3
BLOCK_ELEMENTS = 64


@dataclass(frozen=True)
class Encoded:
    """A flat array as a codec writes it.

    Attributes:
        data: The bytes of `Tensor.data`.
        scales: The bytes of `Tensor.scales`, empty but for int8-block.
        decoded: What `decode` will make of them, bit for bit; the checksum is over this.
    """

    data: bytes
    scales: bytes
    decoded: Array


class TensorCodec(Protocol):
    """One way to write the elements of a tensor."""

    lossless: ClassVar[bool]

    def encode(self, elements: Array) -> Encoded:
        """Encode a flat, contiguous, finite array of one of the three dtypes."""

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Return a flat, writable array of exactly `num_elements` elements.

        Allocates no more than a few times `num_elements * dtype.itemsize` bytes, whatever `data` claims.

        Raises:
            CorruptTensor: `data` and `scales` do not hold that many elements.
        """


class Raw:
    """The elements themselves, little endian."""

    lossless: ClassVar[bool] = True

    def encode(self, elements: Array) -> Encoded:
        """Copy the bytes."""
        return Encoded(elements.tobytes(), b"", elements)

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Copy the bytes back: the array outlives the message, and torch wants it writable."""
        _require_no_scales(scales)
        expected_bytes = num_elements * dtype.itemsize
        if len(data) != expected_bytes:
            raise CorruptTensor(f"a raw tensor of {expected_bytes} bytes arrived as {len(data)} bytes")
        return np.frombuffer(data, dtype=dtype).copy()


class _ZstdContexts(threading.local):
    """zstd contexts are not thread-safe, so every thread gets its own pair."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


class Zstd:
    """Byte shuffle, then one zstd frame that declares its content size.

    The shuffle writes the first byte of every element, then the second byte of every element and so on.
    Exponent bytes of latents resemble each other while mantissa bytes are noise, so the compressor finds
    something only when they stand apart.
    """

    lossless: ClassVar[bool] = True
    _contexts = _ZstdContexts()

    def encode(self, elements: Array) -> Encoded:
        """Shuffle and compress."""
        planes = elements.view(np.uint8).reshape(-1, elements.itemsize).T
        return Encoded(self._contexts.compressor.compress(planes.tobytes()), b"", elements)

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Decompress within bounds and unshuffle.

        python-zstandard allocates whatever content size the frame declares and ignores `max_output_size`
        then, so the declaration is compared before a byte is allocated.
        """
        _require_no_scales(scales)
        expected_bytes = num_elements * dtype.itemsize
        try:
            declared_bytes = zstandard.get_frame_parameters(data).content_size
            if declared_bytes != expected_bytes:
                raise CorruptTensor(f"a zstd frame declares {declared_bytes} bytes for {expected_bytes}")
            shuffled = self._contexts.decompressor.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptTensor(f"a zstd frame does not decompress: {error}") from error
        planes = np.frombuffer(shuffled, dtype=np.uint8).reshape(dtype.itemsize, num_elements)
        return planes.T.copy(order="C").reshape(-1).view(dtype)


class Int8Block:
    """Lossy: each block of 64 elements as int8 times one float32 scale (its largest magnitude / 127).

    The error of an element is at most half a scale step, `max(|block|) / 254`, plus the rounding to the
    tensor's own dtype. A block whose largest magnitude is below 127 float32-smallest-normals (1.5e-36)
    becomes zeros: a subnormal scale has too few bits left to keep that bound, and its products would depend
    on whether a machine flushes subnormals.
    """

    lossless: ClassVar[bool] = False

    def encode(self, elements: Array) -> Encoded:
        """Quantise; `decoded` is the reconstruction."""
        blocks = np.zeros((_num_blocks(elements.size), BLOCK_ELEMENTS), dtype=np.float32)
        blocks.reshape(-1)[: elements.size] = elements
        scales = np.abs(blocks).max(axis=1) / np.float32(127)
        # 127 times a rounded-up scale must not leave float32 where the block touches its largest number.
        scales = np.minimum(scales, np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0)))
        scales[scales < np.finfo(np.float32).tiny] = 0
        steps = np.divide(blocks, scales[:, None], out=np.zeros_like(blocks), where=scales[:, None] > 0)
        quantised = np.clip(np.rint(steps), -127, 127).astype(np.int8).reshape(-1)[: elements.size]
        return Encoded(quantised.tobytes(), scales.tobytes(), _dequantise(quantised, scales, elements.dtype))

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Multiply by the scales in float32, then round to `dtype`."""
        if len(data) != num_elements:
            raise CorruptTensor(f"an int8-block tensor of {num_elements} elements arrived with {len(data)}")
        if len(scales) != 4 * _num_blocks(num_elements):
            raise CorruptTensor(
                f"an int8-block tensor of {num_elements} elements needs {_num_blocks(num_elements)} "
                f"float32 scales, not {len(scales)} bytes"
            )
        block_scales = np.frombuffer(scales, dtype="<f4")
        if not (np.isfinite(block_scales) & (block_scales >= 0)).all():
            raise CorruptTensor("a scale of an int8-block tensor is negative or not finite")
        return _dequantise(np.frombuffer(data, dtype=np.int8), block_scales, dtype)


CODECS: dict[Codec, TensorCodec] = {
    Codec.RAW: Raw(),
    Codec.ZSTD: Zstd(),
    Codec.INT8_BLOCK: Int8Block(),
}
LOSSLESS_CODECS = frozenset(codec for codec, implementation in CODECS.items() if implementation.lossless)


def _num_blocks(num_elements: int) -> int:
    return -(-num_elements // BLOCK_ELEMENTS)


def _dequantise(quantised: NDArray[np.int8], scales: NDArray[np.float32], dtype: np.dtype[np.generic]) -> Array:
    # One float32 product and one rounding: the same bits on every machine, so both ends agree on the checksum.
    with np.errstate(over="ignore"):  # hostile scales overflow to infinity, which the finite check refuses
        return (quantised * np.repeat(scales, BLOCK_ELEMENTS)[: quantised.size]).astype(dtype)


def _require_no_scales(scales: bytes) -> None:
    if scales:
        raise CorruptTensor(f"{len(scales)} bytes of scales arrived with a codec that has none")
