import dataclasses
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from wire_samples import SHAPE, gaussian, spec

from protos import ecdiff_v1_pb2 as pb
from wire.errors import CorruptTensor, InvalidTensor, ModelError
from wire.messages import Codec, DType, Scaling, Source
from wire.tensors import CodecEvent, TensorSpec, decode_tensor, dtype_of, encode_tensor, numpy_dtype

LATENTS = spec()


def tensor(codec=Codec.RAW, dtype=DType.FLOAT32, **changes):
    """A good tensor of SHAPE, then spoilt by `changes`."""
    return spoil(encode_tensor(gaussian(dtype), codec=codec, scaling=Scaling.SCHEDULER), **changes)


def spoil(message, **changes):
    for name, value in changes.items():
        if name == "shape":
            message.ClearField("shape")
            message.shape.extend(value)
        else:
            setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("ours", "theirs"), [(DType, pb.DType), (Codec, pb.Codec), (Scaling, pb.Scaling), (Source, pb.Source)]
)
def test_enums_equal_the_schema(ours, theirs):
    prefix = ours.__name__.upper()
    expected = {f"{prefix}_UNSPECIFIED": 0} | {f"{prefix}_{member.name}": member.value for member in ours}
    assert dict(theirs.items()) == expected


@pytest.mark.parametrize("dtype", DType)
def test_dtypes_map_both_ways(dtype):
    assert dtype_of(np.zeros(1, numpy_dtype(dtype))) is dtype


@pytest.mark.parametrize("dtype", ["float64", "int8", ">f4", "complex64", "object"])
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(ValueError, match="must be float32, float16 or bfloat16, not"):
        encode_tensor(np.zeros(SHAPE, dtype), codec=Codec.RAW, scaling=Scaling.SCHEDULER)


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
@pytest.mark.parametrize("dtype", DType)
def test_lossless_round_trip_is_bit_exact(codec, dtype):
    array = gaussian(dtype)
    decoded = decode_tensor(tensor(codec, dtype), LATENTS)
    assert decoded.dtype == array.dtype
    assert decoded.shape == SHAPE
    assert decoded.tobytes() == array.tobytes()
    assert decoded.flags.writeable


@pytest.mark.parametrize("dtype", DType)
def test_int8_round_trip_is_what_the_encoder_checksummed(dtype):
    decoded = decode_tensor(tensor(Codec.INT8_BLOCK, dtype), LATENTS)
    error = decoded.astype(np.float64) - gaussian(dtype).astype(np.float64)
    assert 0 < np.abs(error).max() < 0.03


@pytest.mark.parametrize("codec", Codec)
def test_strided_arrays_are_encoded_in_their_own_order(codec):
    array = gaussian(shape=(1, 8, 8, 4)).transpose(0, 3, 1, 2)
    assert not array.flags.c_contiguous
    strided = encode_tensor(array, codec=codec, scaling=Scaling.SCHEDULER)
    assert strided == encode_tensor(np.ascontiguousarray(array), codec=codec, scaling=Scaling.SCHEDULER)
    assert decode_tensor(strided, LATENTS).shape == SHAPE


def test_decoded_array_outlives_the_message():
    message = tensor()
    decoded = decode_tensor(message, LATENTS)
    message.Clear()
    decoded += 1
    np.testing.assert_array_equal(decoded, gaussian() + 1)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DType)
def test_encoder_refuses_what_the_receiver_would(codec, dtype, value):
    array = gaussian(dtype)
    array[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match="the scheduler tensor to be sent holds NaN or infinity"):
        encode_tensor(array, codec=codec, scaling=Scaling.SCHEDULER)


# --------------------------------------------------------------------------- the order of checks


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
        ({"codec": 0}, "must be written as one of int8-block, raw, zstd, not 0"),
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


# ------------------------------------------------------------------------------ specs and events


def test_open_shapes_are_bounded_by_rank_and_bytes():
    anything = spec(shape=None)
    assert decode_tensor(tensor(), anything).shape == SHAPE
    reshaped = tensor(shape=(2, 2, 1, 64))
    assert decode_tensor(reshaped, anything).shape == (2, 2, 1, 64)
    with pytest.raises(InvalidTensor, match="the cap is 1023"):
        decode_tensor(tensor(), dataclasses.replace(anything, max_bytes=1023))


def test_none_leaves_one_dimension_open():
    rows = TensorSpec(
        shape=(1, None, 16),
        dtypes=frozenset(DType),
        codecs=frozenset(Codec),
        scaling=Scaling.EMBEDDING,
        max_bytes=4096,
        rank=3,
    )
    for length in (1, 7, 64):
        message = encode_tensor(gaussian(shape=(1, length, 16)), codec=Codec.ZSTD, scaling=Scaling.EMBEDDING)
        assert decode_tensor(message, rows).shape == (1, length, 16)
    for shape in ((2, 7, 16), (1, 7, 17)):
        message = encode_tensor(gaussian(shape=shape), codec=Codec.ZSTD, scaling=Scaling.EMBEDDING)
        with pytest.raises(InvalidTensor, match=r"must have the shape \(1, None, 16\)"):
            decode_tensor(message, rows)


def test_specs_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="rank says 3"):
        spec(rank=3)
    with pytest.raises(ValueError, match="max_bytes must be at least 1, not 0"):
        spec(max_bytes=0)


@pytest.mark.parametrize("codec", Codec)
def test_observer_sees_one_event_for_each_direction(codec):
    events: list[CodecEvent] = []
    message = encode_tensor(gaussian(), codec=codec, scaling=Scaling.SCHEDULER, observe=events.append)
    decode_tensor(message, LATENTS, observe=events.append)
    assert [event.operation for event in events] == ["encode", "decode"]
    for event in events:
        assert event.codec is codec
        assert event.scaling is Scaling.SCHEDULER
        assert event.raw_bytes == 1024
        assert event.wire_bytes == len(message.data) + len(message.scales)
        assert 0 < event.seconds < 10


def test_observer_hears_nothing_of_refused_tensors():
    events: list[CodecEvent] = []
    with pytest.raises(CorruptTensor):
        decode_tensor(tensor(crc32=1), LATENTS, observe=events.append)
    assert events == []
