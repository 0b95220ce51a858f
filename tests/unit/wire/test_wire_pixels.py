"""Pixels on the wire: lossless, smaller than they are, and checked before anything is allocated."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard

from protos import ecdiff_v1_pb2 as pb
from wire.convert.pixels import decode_pixels, encode_pixels
from wire.errors import CorruptTensor, InvalidTensor


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (2, 33, 65, 3), (1, 5, 16, 24, 3)])
def test_pixels_arrive_bit_for_bit(shape) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode_pixels(encode_pixels(pixels), shape), pixels)


def test_a_smooth_picture_is_small() -> None:
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, None, :, None], (1, 256, 256, 3))
    assert len(encode_pixels(picture).data) < 0.02 * picture.size


@pytest.mark.parametrize("shape", [None, (1, 8, 9, 3), (1, 8, 8), (2, 8, 8, 3)])
def test_pixels_of_another_shape_or_none_that_were_asked_for_are_refused(shape) -> None:
    with pytest.raises(InvalidTensor, match="pixels must have the shape"):
        decode_pixels(encode_pixels(np.zeros((1, 8, 8, 3), np.uint8)), shape)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, zstandard.compress(bytes(191)), zstandard.compress(b"\1" * 192)])
def test_damaged_pixels_are_refused(data) -> None:
    message = encode_pixels(np.zeros((1, 8, 8, 3), np.uint8))
    message.data = data
    with pytest.raises(CorruptTensor):
        decode_pixels(message, (1, 8, 8, 3))


def test_a_bomb_allocates_nothing() -> None:
    message = pb.Pixels(shape=(1, 8, 8, 3), data=zstandard.compress(bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(CorruptTensor, match="declares 67108864 bytes for 192"):
        decode_pixels(message, (1, 8, 8, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
