"""Damaged messages by the thousand: none crashes, hangs, grows, takes what is not there, or becomes other latents."""

from __future__ import annotations

import random
import resource
import time
import tracemalloc
import warnings
from collections import Counter

import numpy as np
import psutil
import pytest
from google.protobuf.message import DecodeError, Message
from wire_samples import CLIENT_MESSAGES, CLIENT_SPECS, SERVER_MESSAGES, SERVER_SPECS, SHAPE, gaussian, spec

from harness.hostile import BOMB_BYTES, TENSOR_DAMAGE, damage_bytes, damage_tensor, flip_bit, fragment_lies
from protos import ecdiff_v1_pb2 as pb
from wire.codecs import LOSSLESS_CODECS
from wire.convert import decode_client, decode_open_header, decode_server, encode_client, encode_server
from wire.errors import CorruptTensor, EcdiffError, InvalidTensor
from wire.framing import Assembler
from wire.messages import Codec, DType, Scaling
from wire.tensors import decode_tensor, encode_tensor

CLIENT = [encode_client(message, codec=codec) for message in CLIENT_MESSAGES for codec in Codec]
SERVER = [encode_server(message, codec=codec) for message in SERVER_MESSAGES for codec in Codec]
MESSAGES: list[pb.ClientMessage | pb.ServerMessage] = [*CLIENT, *SERVER]
ARRAYS = {dtype: gaussian(dtype) for dtype in DType}
TENSORS = {
    (dtype, codec): encode_tensor(array, codec=codec, scaling=Scaling.SCHEDULER)
    for dtype, array in ARRAYS.items()
    for codec in Codec
}
MAX_ASSEMBLED_BYTES = 64 * 1024

MAX_SECONDS = 1.0
MAX_GROWTH_BYTES = 16 * 2**20
# Of one message of a few KiB; what a bomb or a declaration claims is 64 MiB and more.
MAX_PEAK_BYTES = 2**20


def decode(message: Message) -> None:
    """As the end does that this message is for."""
    if isinstance(message, pb.ClientMessage):
        decode_open_header(message) if message.WhichOneof("message") == "open" else None
        decode_client(message, specs=CLIENT_SPECS)
    else:
        assert isinstance(message, pb.ServerMessage)
        decode_server(message, specs=SERVER_SPECS)


def take(pieces: list[bytes], kind: type[pb.ClientMessage] | type[pb.ServerMessage]) -> str:
    """Take in a stream of serialized messages as either end does; return what became of it."""
    assembler = Assembler(kind, MAX_ASSEMBLED_BYTES)
    try:
        for piece in pieces:
            whole = assembler.push(kind.FromString(piece))
            if whole is not None:
                decode(whole)
    except (EcdiffError, DecodeError) as refusal:
        return type(refusal).__name__
    return "taken"


def tensors_of(message: Message) -> list[pb.Tensor]:
    if isinstance(message, pb.Tensor):
        return [message]
    found: list[pb.Tensor] = []
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found += value.values()
        elif field.message_type is not None:
            found += [tensor for each in (value if field.is_repeated else [value]) for tensor in tensors_of(each)]
    return found


def one_case(chance: random.Random) -> tuple[list[bytes], type[pb.ClientMessage] | type[pb.ServerMessage]]:
    """Return the pieces of a stream with something wrong in it."""
    message = chance.choice(MESSAGES)
    kind = type(message)
    match chance.randrange(5):
        case 0:
            return [chance.randbytes(chance.randrange(200))], kind
        case 1:
            return [kind(fragment=piece).SerializeToString() for piece in fragment_lies(message, chance)], kind
        case 2:
            others = chance.choices([each for each in MESSAGES if type(each) is kind], k=2)
            mixed = [kind(fragment=piece) for each in others for piece in fragment_lies(each, chance)]
            chance.shuffle(mixed)
            return [piece.SerializeToString() for piece in mixed], kind
        case 3:
            damaged = kind.FromString(message.SerializeToString())
            for tensor in tensors_of(damaged)[:1]:
                damage_tensor(tensor, chance)
            return [damaged.SerializeToString()], kind
        case _:
            return [damage_bytes(message.SerializeToString(), chance)], kind


def fuzz(num_messages: int) -> None:
    chance, process, outcomes = random.Random(0), psutil.Process(), Counter[str]()
    slowest, resident_bytes, num, began = 0.0, 0, 0, time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while num < num_messages:
            if not resident_bytes and num >= num_messages / 10:
                resident_bytes = process.memory_info().rss
            pieces, kind = one_case(chance)
            started = time.perf_counter()
            outcomes[take(pieces, kind)] += 1
            slowest = max(slowest, time.perf_counter() - started)
            num += len(pieces)
    grown_bytes = process.memory_info().rss - resident_bytes
    print(
        f"\n{num} messages in {outcomes.total()} streams: {time.perf_counter() - began:.0f} s, the slowest "
        f"{slowest * 1e3:.1f} ms, RSS {resident_bytes / 2**20:.0f} MiB after a tenth, {grown_bytes / 2**20:+.1f} MiB "
        f"at the end, highest {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB; {dict(outcomes)}"
    )
    assert slowest < MAX_SECONDS
    assert grown_bytes < MAX_GROWTH_BYTES
    assert outcomes["taken"] < 0.2 * outcomes.total()
    assert len(outcomes) >= 6, "every kind of refusal was met"


def test_damaged_messages_are_refused_in_no_time_and_no_memory() -> None:
    fuzz(3_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_damaged_messages_are_refused_in_no_time_and_no_memory() -> None:
    fuzz(100_000)


@pytest.mark.parametrize("damage", TENSOR_DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_a_lie_allocates_no_more_than_the_message_holds(damage) -> None:
    cases = []
    for number, tensor in enumerate(TENSORS.values()):
        message = pb.Tensor.FromString(tensor.SerializeToString())
        damage(message, random.Random(number))
        cases.append(message)
    wide = spec(shape=(1, 4, None, None), max_bytes=2 * BOMB_BYTES)
    tracemalloc.start()
    try:
        for message in cases:
            for wanted in (spec(), wide):
                with pytest.raises((InvalidTensor, CorruptTensor)):
                    decode_tensor(message, wanted)
            assert tracemalloc.get_traced_memory()[1] - len(message.data) < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.label)
@pytest.mark.parametrize("dtype", DType, ids=lambda dtype: dtype.name.lower())
def test_no_flipped_bit_of_the_data_becomes_other_latents(dtype: DType, codec: Codec) -> None:
    """Every bit of the data once; a codec's frame may have bits that mean nothing."""
    good = TENSORS[dtype, codec]
    expected = decode_tensor(good, spec())
    if codec in LOSSLESS_CODECS:
        assert expected.tobytes() == ARRAYS[dtype].tobytes()
    num_refused = 0
    for bit in range(8 * len(good.data)):
        damaged = bytearray(good.data)
        damaged[bit // 8] ^= 1 << bit % 8
        message = pb.Tensor.FromString(good.SerializeToString())
        message.data = bytes(damaged)
        try:
            decoded = decode_tensor(message, spec())
        except CorruptTensor:
            num_refused += 1
        else:
            np.testing.assert_array_equal(decoded.view(np.uint8), expected.view(np.uint8))
    # The zstd frame's header has a few such bits; where a block of int8 has the scale 0 its numbers mean nothing.
    assert num_refused >= 8 * len(good.data) - 8


def test_damage_is_the_same_for_the_same_seed() -> None:
    assert damage_bytes(bytes(SHAPE), random.Random(3)) == damage_bytes(bytes(SHAPE), random.Random(3))
    assert flip_bit(b"\0", random.Random(3)) != b"\0"
