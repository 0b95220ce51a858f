"""Tensors as bytes and back: exact where the codec is lossless, bounded by specs, told to observers."""

import dataclasses

import numpy as np
import pytest
from tensor_messages import LATENTS, tensor
from wire_samples import SHAPE, gaussian, spec

from protos import ecdiff_v1_pb2 as pb
from wire.errors import CorruptTensor, InvalidTensor, ModelError
from wire.messages import Codec, DType, Scaling, Source
from wire.tensors import CodecEvent, TensorSpec, decode_tensor, dtype_of, encode_tensor, numpy_dtype


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
