"""Damage to messages, drawn from a seeded generator: the same seed does the same damage."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import numpy as np
import zstandard

from protos import ecdiff_v1_pb2 as pb

BOMB_BYTES = 64 * 2**20
BOMB = zstandard.ZstdCompressor().compress(bytes(BOMB_BYTES))
_MAX_EDITS = 4
# Headers are where the structure is, tensors where the bytes are: half of the damage is aimed at the front.
_FRONT_BYTES = 160


def flip_bit(data: bytes, chance: random.Random) -> bytes:
    """Return `data` with one bit the other way round."""
    damaged = bytearray(data)
    damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return `data` with a few bits flipped, bytes replaced, deleted, repeated or inserted, or its end cut off."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, _MAX_EDITS)):
        reach = len(damaged) if chance.random() < 0.5 else min(len(damaged), _FRONT_BYTES)
        at, size = chance.randrange(reach + 1), chance.randint(1, 8)
        match chance.randrange(6):
            case 0 if damaged:
                damaged[:] = flip_bit(bytes(damaged), chance)
            case 1:
                damaged[at : at + size] = chance.randbytes(size)
            case 2:
                del damaged[at : at + size]
            case 3:
                damaged[at:at] = damaged[at : at + size]
            case 4:
                damaged[at:at] = chance.randbytes(size)
            case 5:
                del damaged[at:]
    return bytes(damaged)


def _shape(tensor: pb.Tensor, chance: random.Random) -> None:
    at = chance.randrange(len(tensor.shape))
    tensor.shape[at] = chance.choice(
        [dim for dim in (0, 1, 3, 7, 2**16, 2**16 + 1, 2**32 - 1) if dim != tensor.shape[at]]
    )


def _rank(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.shape[:] = chance.choice([[], [256], [4, 8, 8], [1] * 100, list(tensor.shape) * 2])


def _overflow(tensor: pb.Tensor, chance: random.Random) -> None:
    """Dims whose product is 0 modulo 2**64, as a careless product would have it."""
    tensor.shape[:] = [2**16] * len(tensor.shape)
    tensor.raw_bytes = chance.choice([0, 1, 2**63])


def _size(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.raw_bytes = chance.choice([0, 1, tensor.raw_bytes + 1, tensor.raw_bytes * 2, 2**31, 2**40, 2**64 - 1])


def _huge(tensor: pb.Tensor, chance: random.Random) -> None:
    """A declaration that contradicts nothing but the data, which are not there."""
    tensor.shape[-1] = 2**16
    tensor.raw_bytes = int(np.prod(np.array(tensor.shape, np.float64))) * (4 if tensor.dtype == pb.DTYPE_FLOAT32 else 2)


def _bomb(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.codec = pb.CODEC_ZSTD
    tensor.data = BOMB
    tensor.scales = b""


def _numbers(tensor: pb.Tensor, chance: random.Random) -> None:
    """NaN or infinity behind a checksum that is right."""
    array = np.zeros(tensor.raw_bytes // 4 or 1, np.float32)
    array[chance.randrange(array.size)] = chance.choice([np.nan, np.inf, -np.inf])
    tensor.dtype, tensor.codec, tensor.data, tensor.scales = pb.DTYPE_FLOAT32, pb.CODEC_RAW, array.tobytes(), b""
    tensor.crc32 = zlib.crc32(tensor.data)


def _data(tensor: pb.Tensor, chance: random.Random) -> None:
    # Some bits of a zstd frame's header mean nothing.
    tensor.data = tensor.data[:16] + flip_bit(tensor.data[16:], chance)


def _cut(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.data = tensor.data[: -chance.randint(1, len(tensor.data))]


def _more(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.data += chance.randbytes(chance.randint(1, 64))


def _checksum(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.crc32 ^= 1 << chance.randrange(32)


def _scaling(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.scaling = pb.Scaling.ValueType(
        chance.choice([each for each in (-1, 0, 1, 2, 3, 4, 5) if each != tensor.scaling])
    )


def _codec(tensor: pb.Tensor, chance: random.Random) -> None:
    tensor.codec = pb.Codec.ValueType(chance.choice([each for each in (-1, 0, 1, 2, 3, 4) if each != tensor.codec]))


def _dtype(tensor: pb.Tensor, chance: random.Random) -> None:
    # Never one of the same item size: no check of a tensor alone tells float16 from bfloat16.
    other = (2, 3) if tensor.dtype == pb.DTYPE_FLOAT32 else (1,)
    tensor.dtype = pb.DType.ValueType(chance.choice((-1, 0, 4, *other)))


TENSOR_DAMAGE: tuple[Callable[[pb.Tensor, random.Random], None], ...] = (
    _shape,
    _rank,
    _overflow,
    _size,
    _huge,
    _bomb,
    _numbers,
    _data,
    _cut,
    _more,
    _checksum,
    _scaling,
    _codec,
    _dtype,
)
"""Each makes a good tensor of finite numbers one that must be refused by whoever wants its shape and scaling."""


def damage_tensor(tensor: pb.Tensor, chance: random.Random) -> None:
    """Make it one that must be refused."""
    chance.choice(TENSOR_DAMAGE)(tensor, chance)


def fragment_lies(message: pb.ClientMessage | pb.ServerMessage, chance: random.Random) -> list[pb.Fragment]:
    """Return the fragments of `message`: dropped, repeated, out of order, too long, or with another total."""
    serialized = message.SerializeToString()
    size = max(1, len(serialized) // chance.randint(2, 5))
    pieces = [
        pb.Fragment(total_bytes=len(serialized), data=serialized[start : start + size])
        for start in range(0, len(serialized), size)
    ]
    at = chance.randrange(len(pieces))
    match chance.randrange(7):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(at, pieces[at])
        case 2:
            chance.shuffle(pieces)
        case 3:
            pieces[at].data += chance.randbytes(chance.randint(1, 32))
        case 4:
            pieces[at].total_bytes = chance.choice([0, 1, len(serialized) + 1, 2**40, 2**64 - 1])
        case 5:
            pieces[at].data = b""
        case 6:
            pieces[at].data = flip_bit(pieces[at].data, chance)
    return pieces
