"""int8-delta over a stream: what changed is sent, errors do not add up, and a base is never mistaken for another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from wire_samples import OPENED, SERVER_SPECS

from protos import ecdiff_v1_pb2 as pb
from wire.chain import KEY_FRAME_INTERVAL, Chain
from wire.codecs import BLOCK_ELEMENTS
from wire.convert import ServerSpecs, decode_server, encode_server
from wire.errors import CorruptTensor, InvalidTensor
from wire.messages import Codec, DType, Scaling, Source, Step
from wire.tensors import Link, TensorSpec, decode_tensor, encode_tensor, numpy_dtype

SHAPE = (1, 4, 32, 32)
NUM_STEPS = 40


def trajectory(dtype: DType = DType.FLOAT32, *, change: float = 0.05) -> list[np.ndarray]:
    """Return latents that move as those of a sampler do: a little each step, from noise to something."""
    chance = np.random.default_rng(3)
    latents, made = chance.standard_normal(SHAPE), []
    for _ in range(NUM_STEPS):
        latents = latents + change * chance.standard_normal(SHAPE)
        made.append(latents.astype(numpy_dtype(dtype)))
    return made


def spec(dtype: DType, shape: tuple[int, ...] = SHAPE) -> TensorSpec:
    return TensorSpec(
        shape=shape,
        dtypes=frozenset({dtype}),
        codecs=frozenset({Codec.INT8_DELTA}),
        scaling=Scaling.SCHEDULER,
        max_bytes=2**20,
    )


def send(latents: np.ndarray, chain: Chain | None, codec: Codec = Codec.INT8_DELTA) -> pb.Tensor:
    link = None if chain is None else Link(chain=chain, kind="latents")
    return encode_tensor(latents, codec=codec, scaling=Scaling.SCHEDULER, link=link)


def take(message: pb.Tensor, chain: Chain | None, dtype: DType = DType.FLOAT32) -> np.ndarray:
    link = None if chain is None else Link(chain=chain, kind="latents")
    return decode_tensor(message, spec(dtype), link=link)


def size(message: pb.Tensor) -> int:
    return len(message.data) + len(message.scales)


def bound(latents: np.ndarray, dtype: DType) -> np.ndarray:
    """Return half a step of each element's block, and the rounding to the dtype."""
    blocks = np.abs(latents.astype(np.float64)).reshape(-1, BLOCK_ELEMENTS).max(axis=1)
    digits = {DType.FLOAT32: 2**-22, DType.FLOAT16: 2**-10, DType.BFLOAT16: 2**-7}[dtype]
    return np.repeat(blocks / 254 + blocks * digits, BLOCK_ELEMENTS).reshape(latents.shape)


@pytest.mark.parametrize("dtype", DType)
def test_every_tensor_is_within_half_a_step_however_many_came_before(dtype):
    there, here = Chain(), Chain()
    for latents in trajectory(dtype):
        decoded = take(send(latents, there), here, dtype)
        assert decoded.dtype == latents.dtype
        assert (np.abs(decoded.astype(np.float64) - latents.astype(np.float64)) <= bound(latents, dtype)).all()


def test_what_changed_is_smaller_than_the_whole():
    chain = Chain()
    sizes = [size(send(latents, chain)) for latents in trajectory()]
    alone = [size(send(latents, None, Codec.INT8_BLOCK)) for latents in trajectory()]
    assert sizes[0] < 1.02 * alone[0]
    assert np.mean(sizes[1:KEY_FRAME_INTERVAL]) < 0.75 * np.mean(alone)


def test_a_key_frame_comes_first_and_every_so_often():
    chain = Chain()
    is_key = [not send(latents, chain).HasField("base_crc32") for latents in trajectory()]
    assert [index for index, key in enumerate(is_key) if key] == list(range(0, NUM_STEPS, KEY_FRAME_INTERVAL))


@pytest.mark.parametrize("factor", [-3.0, 1e-3, -1e-30, 0.0])
def test_what_is_too_far_from_the_last_is_sent_whole(factor):
    there, here = Chain(), Chain()
    first = trajectory()[0]
    take(send(first, there), here)
    second = (first * factor).astype(np.float32)
    message = send(second, there)
    assert not message.HasField("base_crc32")
    assert (np.abs(take(message, here) - second) <= np.abs(second).max() / 200).all()


def test_numbers_at_the_edge_of_half_precision_stay_finite():
    there, here = Chain(), Chain()
    for sign in (1.0, 0.999, 1.0):
        latents = np.full(SHAPE, 65504 * sign, np.float16)
        assert np.isfinite(take(send(latents, there), here, DType.FLOAT16)).all()


def test_a_tensor_that_is_left_out_before_it_is_encoded_is_not_missed():
    there, here = Chain(), Chain()
    for index, latents in enumerate(trajectory()):
        if index % 3 == 0:
            assert np.allclose(take(send(latents, there), here), latents, atol=0.05)


def test_what_the_receiver_does_with_a_tensor_does_not_change_the_next():
    there, here = Chain(), Chain()
    for latents in trajectory()[:4]:
        decoded = take(send(latents, there), here)
        decoded *= 0


def second_of_two(here: Chain) -> pb.Tensor:
    there = Chain()
    first, second = trajectory()[:2]
    take(send(first, there), here)
    return send(second, there)


def test_a_difference_to_what_never_came_is_refused():
    message = second_of_two(Chain())
    with pytest.raises(CorruptTensor, match="did not come before it"):
        take(message, Chain())


def test_a_difference_that_comes_twice_is_refused():
    here = Chain()
    message = second_of_two(here)
    take(message, here)
    with pytest.raises(CorruptTensor, match="did not come before it"):
        take(message, here)


def test_a_difference_to_another_shape_or_dtype_is_refused():
    here, small = Chain(), (1, 4, 16, 16)
    message = second_of_two(here)
    for other, dtype in ((np.zeros(small, np.float32), DType.FLOAT32), (np.zeros(SHAPE, np.float16), DType.FLOAT16)):
        elsewhere = Chain()
        link = Link(chain=elsewhere, kind="latents")
        whole = encode_tensor(other, codec=Codec.INT8_DELTA, scaling=Scaling.SCHEDULER)
        decode_tensor(whole, spec(dtype, other.shape), link=link)
        with pytest.raises(CorruptTensor, match="did not come before it"):
            take(message, elsewhere)


def test_a_difference_has_no_place_where_nothing_follows_anything():
    message = second_of_two(Chain())
    with pytest.raises(InvalidTensor, match="nothing comes before it here"):
        take(message, None)


def test_no_other_codec_takes_differences():
    message = send(trajectory()[0], None, Codec.INT8_BLOCK)
    message.base_crc32 = 1
    with pytest.raises(InvalidTensor, match="nothing comes before it here"):
        decode_tensor(message, dataclasses.replace(spec(DType.FLOAT32), codecs=frozenset(Codec)))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("data", b"", "does not decompress|declares"),
        ("data", b"\xff" * 50, "does not decompress"),
        ("scales", b"", "needs 64 float32 scales, not 0 bytes"),
        ("scales", np.full(64, np.inf, np.float32).tobytes(), "negative or not finite"),
        ("scales", np.full(64, 1e38, np.float32).tobytes(), "checksum|NaN"),
        ("crc32", 0, "checksum"),
    ],
)
def test_a_damaged_difference_is_refused_and_changes_nothing_here(field, value, problem):
    here = Chain()
    message = second_of_two(here)
    damaged = pb.Tensor.FromString(message.SerializeToString())
    setattr(damaged, field, value)
    with pytest.raises(CorruptTensor, match=problem):
        take(damaged, here)
    take(message, here)


def test_the_tensors_of_steps_follow_each_other_and_those_of_predictions_by_themselves():
    here, there = Chain(), Chain()
    made = trajectory()
    specs = ServerSpecs(
        latents=spec(DType.FLOAT32),
        prediction=dataclasses.replace(spec(DType.FLOAT32), scaling=Scaling.PREDICTION),
        num_inference_steps=NUM_STEPS,
    )
    decode_server(encode_server(OPENED, codec=Codec.RAW), specs=SERVER_SPECS)
    whole = []
    for index in range(1, 6):
        step = Step(
            step_index=index,
            source=Source.CLOUD,
            latents_before=made[index - 1],
            latents=made[index],
            prediction=-made[index],
        )
        message = encode_server(step, codec=Codec.INT8_DELTA, chain=there)
        tensors = (message.step.latents_before, message.step.latents, message.step.prediction)
        whole.append([not tensor.HasField("base_crc32") for tensor in tensors])
        decoded = decode_server(message, specs=specs, chain=here)
        assert np.allclose(decoded.prediction, -made[index], atol=0.05)
        assert np.allclose(decoded.latents, made[index], atol=0.05)
    assert whole == [[True, False, True], *[[False] * 3] * 4]
    assert here.base("SCHEDULER").tobytes() == there.base("SCHEDULER").tobytes()
