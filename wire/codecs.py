"""Codecs: how a tensor's bytes are written, one class for each member of `Codec`.

A codec sees a flat array and knows nothing of shapes, caps or checksums; `wire.tensors` checks all of
those, before it for what is declared and after it for what came out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
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
        scales: The bytes of `Tensor.scales`, empty but for int8-block and int8-delta.
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


_contexts = _ZstdContexts()


def compressed(data: bytes) -> bytes:
    """Return one zstd frame that declares its size."""
    return _contexts.compressor.compress(data)


def decompressed(data: bytes, expected_bytes: int) -> bytes:
    """Return what a zstd frame holds, if it declares `expected_bytes`.

    python-zstandard allocates whatever content size the frame declares and ignores `max_output_size`
    then, so the declaration is compared before a byte is allocated.

    Raises:
        CorruptTensor: It declares another size, or does not decompress.
    """
    try:
        declared_bytes = zstandard.get_frame_parameters(data).content_size
        if declared_bytes != expected_bytes:
            raise CorruptTensor(f"a zstd frame declares {declared_bytes} bytes for {expected_bytes}")
        return _contexts.decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptTensor(f"a zstd frame does not decompress: {error}") from error


class Zstd:
    """Byte shuffle, then one zstd frame that declares its content size.

    The shuffle writes the first byte of every element, then the second byte of every element and so on.
    Exponent bytes of latents resemble each other while mantissa bytes are noise, so the compressor finds
    something only when they stand apart.
    """

    lossless: ClassVar[bool] = True

    def encode(self, elements: Array) -> Encoded:
        """Shuffle and compress."""
        planes = elements.view(np.uint8).reshape(-1, elements.itemsize).T
        return Encoded(compressed(planes.tobytes()), b"", elements)

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Decompress within bounds and unshuffle."""
        _require_no_scales(scales)
        shuffled = decompressed(data, num_elements * dtype.itemsize)
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
        blocks = _blocks(elements)
        scales = _scales(blocks)
        quantised = np.clip(_steps(blocks, scales), -127, 127).astype(np.int8).reshape(-1)[: elements.size]
        return Encoded(quantised.tobytes(), scales.tobytes(), _dequantise(quantised, scales, elements.dtype))

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Multiply by the scales in float32, then round to `dtype`."""
        if len(data) != num_elements:
            raise CorruptTensor(f"an int8-block tensor of {num_elements} elements arrived with {len(data)}")
        block_scales = _checked_scales(scales, num_elements)
        return _dequantise(np.frombuffer(data, dtype=np.int8), block_scales, dtype)


class Int8Delta:
    """Lossy: what changed since the last tensor of its kind, in the steps of int8-block, as one zstd frame.

    The steps are those that int8-block would take for the whole tensor, so the error has the same bound, and the
    difference is taken to what the receiver has, so errors do not add up. Neighbouring latents of a trajectory differ
    by few steps: small numbers, which compress. A key frame is a difference to zeros.
    """

    lossless: ClassVar[bool] = False

    def encode(self, elements: Array) -> Encoded:
        """Write a key frame."""
        quantised = Int8Block().encode(elements)
        return replace(quantised, data=compressed(quantised.data))

    def encode_delta(self, elements: Array, base: Array) -> Encoded | None:
        """Write the difference to `base`, an array of the same dtype and size; None where it is too far for int8."""
        blocks = _blocks(elements)
        scales = _scales(blocks)
        steps = _steps(blocks - _blocks(base), scales)
        # A block of zeros has no step; unless it was zeros before, it cannot be reached from there.
        gone = (scales == 0) & (_blocks(base) != 0).any(axis=1)
        if gone.any() or np.abs(steps).max(initial=0) > 127:
            return None
        quantised = steps.astype(np.int8).reshape(-1)[: elements.size]
        decoded = _dequantise(quantised, scales, elements.dtype, base)
        if not np.isfinite(decoded).all():  # half a step beyond the largest number
            return None
        return Encoded(compressed(quantised.tobytes()), scales.tobytes(), decoded)

    def decode(self, data: bytes, scales: bytes, dtype: np.dtype[np.generic], num_elements: int) -> Array:
        """Read a key frame."""
        return Int8Block().decode(decompressed(data, num_elements), scales, dtype, num_elements)

    def decode_delta(self, data: bytes, scales: bytes, base: Array) -> Array:
        """Return `base` moved by what `data` says, an array of its dtype and size.

        Raises:
            CorruptTensor: `data` and `scales` do not hold that many elements.
        """
        block_scales = _checked_scales(scales, base.size)
        quantised = np.frombuffer(decompressed(data, base.size), dtype=np.int8)
        return _dequantise(quantised, block_scales, base.dtype, base)


DELTA = Int8Delta()
CODECS: dict[Codec, TensorCodec] = {
    Codec.RAW: Raw(),
    Codec.ZSTD: Zstd(),
    Codec.INT8_BLOCK: Int8Block(),
    Codec.INT8_DELTA: DELTA,
}
LOSSLESS_CODECS = frozenset(codec for codec, implementation in CODECS.items() if implementation.lossless)


def _num_blocks(num_elements: int) -> int:
    return -(-num_elements // BLOCK_ELEMENTS)


def _blocks(elements: Array) -> NDArray[np.float32]:
    """Return the elements in rows of a block each, float32; zeros fill the last one up."""
    blocks = np.zeros((_num_blocks(elements.size), BLOCK_ELEMENTS), dtype=np.float32)
    blocks.reshape(-1)[: elements.size] = elements
    return blocks


def _scales(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each block's step."""
    scales: NDArray[np.float32] = np.abs(blocks).max(axis=1) / np.float32(127)
    # 127 times a rounded-up scale must not leave float32 where the block touches its largest number.
    scales = np.minimum(scales, np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0)))
    scales[scales < np.finfo(np.float32).tiny] = 0
    return scales


def _steps(blocks: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the blocks in whole steps."""
    with np.errstate(over="ignore"):  # a difference may be longer than any step; then it is no int8
        return np.rint(np.divide(blocks, scales[:, None], out=np.zeros_like(blocks), where=scales[:, None] > 0))


def _checked_scales(scales: bytes, num_elements: int) -> NDArray[np.float32]:
    if len(scales) != 4 * _num_blocks(num_elements):
        raise CorruptTensor(
            f"an int8 tensor of {num_elements} elements needs {_num_blocks(num_elements)} "
            f"float32 scales, not {len(scales)} bytes"
        )
    block_scales = np.frombuffer(scales, dtype="<f4")
    if not (np.isfinite(block_scales) & (block_scales >= 0)).all():
        raise CorruptTensor("a scale of an int8 tensor is negative or not finite")
    return block_scales


def _dequantise(
    quantised: NDArray[np.int8],
    scales: NDArray[np.float32],
    dtype: np.dtype[np.generic],
    base: Array | None = None,
) -> Array:
    # One float32 product, one sum and one rounding: the same bits everywhere, so both ends agree on the checksum.
    with np.errstate(over="ignore", invalid="ignore"):  # hostile scales overflow, which the finite check refuses
        moved = quantised * np.repeat(scales, BLOCK_ELEMENTS)[: quantised.size]
        return (moved if base is None else base.astype(np.float32) + moved).astype(dtype)


def _require_no_scales(scales: bytes) -> None:
    if scales:
        raise CorruptTensor(f"{len(scales)} bytes of scales arrived with a codec that has none")
