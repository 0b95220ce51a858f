"""What is refused of a tensor, in which order, and before anything is allocated for it."""

import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from tensor_messages import LATENTS, spoil, tensor
from wire_samples import SHAPE, gaussian, spec

from protos import ecdiff_v1_pb2 as pb
from wire.errors import CorruptTensor, InvalidTensor
from wire.messages import Codec, DType
from wire.tensors import decode_tensor, numpy_dtype


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": 0}, "must be one of bfloat16, float16, float32, not 0"),
        ({"dtype": 99}, "not 99"),
        ({"dtype": -1}, "not -1"),
        ({"shape": ()}, "must have 4 dimensions, not 0"),
        ({"shape": (4, 8, 8)}, "must have 4 dimensions, not 3"),
        ({"shape": (1,) * 1000}, "must have 4 dimensions, not 1000"),
        ({"shape": (0, 4, 8, 8)}, "each dimension of latents must lie in 1..65536"),
        ({"shape": (1, 4, 8, 0), "raw_bytes": 0, "data": b""}, "each dimension"),
        ({"shape": (1, 4, 8, 65537)}, "each dimension"),
        ({"shape": (2**32 - 1,) * 4}, "each dimension"),
        ({"raw_bytes": 1023}, "has 1024 bytes, not 1023"),
        ({"raw_bytes": 0}, "has 1024 bytes, not 0"),
        # np.prod of this shape is 0 in 64 bits.
        ({"shape": (2**16,) * 4, "raw_bytes": 0}, "has 73786976294838206464 bytes, not 0"),
        ({"shape": (1, 4, 8, 65536), "raw_bytes": 2**23}, "has 8388608 bytes, the cap is 1024"),
        ({"shape": (1, 4, 4, 8), "raw_bytes": 512}, r"must have the shape \(1, 4, 8, 8\), not \(1, 4, 4, 8\)"),
        ({"shape": (4, 1, 8, 8)}, "must have the shape"),
        ({"codec": 0}, "must be written as one of int8-block, int8-delta, raw, zstd, not 0"),
        ({"codec": 77}, "not 77"),
        ({"scaling": 0}, "must have scaling scheduler, not number 0"),
        ({"scaling": 2}, "must have scaling scheduler, not number 2"),
    ],
)
def test_wrong_declarations_are_invalid(changes, text):
    with pytest.raises(InvalidTensor, match=text):
        decode_tensor(spoil(tensor(), **changes), LATENTS, name="latents")


def test_checks_come_in_the_order_of_the_protocol():
    """Spoil everything, then repair one thing after the other: each repair uncovers the next complaint."""
    message = tensor(codec=Codec.ZSTD)
    good = tensor(codec=Codec.ZSTD)
    message.dtype = pb.DTYPE_FLOAT16
    message.ClearField("shape")
    message.shape.extend([0, 0, 0])
    message.raw_bytes = 7
    message.codec = pb.CODEC_INT8_BLOCK
    message.scaling = pb.SCALING_PREDICTION
    message.crc32 = good.crc32 ^ 1
    message.data = b"garbage"
    strict = spec(dtypes=frozenset({DType.FLOAT32}), codecs=frozenset({Codec.ZSTD}), max_bytes=1024)

    def complaint():
        with pytest.raises((InvalidTensor, CorruptTensor)) as caught:
            decode_tensor(message, strict)
        return str(caught.value)

    def reshape(*shape):
        message.ClearField("shape")
        message.shape.extend(shape)

    assert "must be one of float32, not float16" in complaint()
    message.dtype = pb.DTYPE_FLOAT32
    assert "dimensions" in complaint()
    reshape(0, 4, 8, 9)
    assert "each dimension" in complaint()
    reshape(1, 4, 8, 9)
    assert "has 1152 bytes, not 7" in complaint()
    message.raw_bytes = 1152
    assert "the cap is 1024" in complaint()
    reshape(1, 4, 4, 16)
    message.raw_bytes = 1024
    assert "must have the shape" in complaint()
    reshape(*SHAPE)
    assert "must be written as one of zstd, not int8-block" in complaint()
    message.codec = pb.CODEC_ZSTD
    assert "must have scaling" in complaint()
    message.scaling = pb.SCALING_SCHEDULER
    assert "does not decompress" in complaint()
    message.data = good.data
    assert "checksum" in complaint()
    message.crc32 = good.crc32
    assert decode_tensor(message, strict).tobytes() == gaussian().tobytes()


def test_finite_is_checked_after_the_checksum():
    array = gaussian()
    array[0, 0, 0, 0] = np.nan
    message = tensor(data=array.tobytes())
    with pytest.raises(CorruptTensor, match="checksum"):
        decode_tensor(message, LATENTS)
    message.crc32 = zlib.crc32(array.tobytes())
    with pytest.raises(CorruptTensor, match="holds NaN or infinity"):
        decode_tensor(message, LATENTS)


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("kind", ["nan", "signalling nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(codec, dtype, kind):
    array = gaussian(dtype)
    bits = array.view({4: np.uint32, 2: np.uint16}[array.itemsize])
    exponent = {DType.FLOAT32: 0x7F800000, DType.FLOAT16: 0x7C00, DType.BFLOAT16: 0x7F80}[dtype]
    sign = {DType.FLOAT32: 0x80000000}.get(dtype, 0x8000)
    bits[0, 3, 7, 7] = {
        "nan": exponent | exponent >> 1,
        "signalling nan": exponent | 1,
        "inf": exponent,
        "-inf": exponent | sign,
    }[kind]
    data = array.tobytes()
    if codec is Codec.ZSTD:
        planes = np.frombuffer(data, np.uint8).reshape(-1, array.itemsize).T
        data = zstandard.ZstdCompressor().compress(planes.tobytes())
    message = tensor(codec, dtype, data=data, crc32=zlib.crc32(array.tobytes()))
    with pytest.raises(CorruptTensor, match="holds NaN or infinity"):
        decode_tensor(message, LATENTS)


@pytest.mark.parametrize("dtype", DType)
def test_int8_overflow_to_infinity_is_refused(dtype):
    infinite = np.full(SHAPE, np.inf, numpy_dtype(dtype))
    message = tensor(
        Codec.INT8_BLOCK,
        dtype,
        data=b"\x7f" * 256,
        scales=np.full(4, 3.4e38, "<f4").tobytes(),
        crc32=zlib.crc32(infinite.tobytes()),
    )
    with pytest.raises(CorruptTensor, match="holds NaN or infinity"):
        decode_tensor(message, LATENTS)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("damage", ["truncated", "extra", "flipped"])
def test_damaged_data_is_corrupt(codec, damage):
    message = tensor(codec)
    if damage == "flipped":
        middle = len(message.data) // 2
        message.data = message.data[:middle] + bytes([message.data[middle] ^ 0x10]) + message.data[middle + 1 :]
    else:
        message.data = message.data[:-1] if damage == "truncated" else message.data + b"\0"
    with pytest.raises(CorruptTensor):
        decode_tensor(message, LATENTS)


def test_hostile_declarations_allocate_nothing():
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 2**20))
    messages = [
        tensor(Codec.ZSTD, data=bomb),
        tensor(Codec.ZSTD, data=bomb, shape=(1, 4, 2048, 2048), raw_bytes=64 * 2**20),
        tensor(Codec.INT8_BLOCK, shape=(1, 4, 2048, 2048), raw_bytes=64 * 2**20),
        tensor(shape=(2**16,) * 4, raw_bytes=0),
    ]
    tracemalloc.start()
    try:
        for message in messages:
            with pytest.raises((InvalidTensor, CorruptTensor)):
                decode_tensor(message, LATENTS)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
