"""Whatever arrives, `decode_*` returns a message or raises an EcdiffError; nothing else, and no warning."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_samples import (
    CLIENT_BYTES,
    CLIENT_SPECS,
    DESCRIPTION_BYTES,
    SERVER_BYTES,
    SERVER_SPECS,
    SHAPE,
    TENSORS,
    spec,
)

from protos import ecdiff_v1_pb2 as pb
from wire.convert import (
    decode_client,
    decode_description,
    decode_open_header,
    decode_server,
)
from wire.errors import EcdiffError
from wire.framing import Assembler
from wire.tensors import decode_tensor

SHORT = settings(max_examples=150, deadline=None, database=None)
LONG = settings(max_examples=20_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

edits = st.lists(
    st.tuples(st.sampled_from(["replace", "delete", "insert", "cut"]), st.integers(0, 2**16), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


@st.composite
def hostile_bytes(draw, originals):
    """Random bytes, or a good message with a few bytes replaced, deleted, inserted, or its end cut off."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=512))
    data = bytearray(draw(st.sampled_from(originals)))
    for kind, position, change in draw(edits):
        # Headers are where the structure is, tensors where the bytes are: aim at the front half of the time.
        at = position % (len(data) + 1) if position % 2 else position % min(len(data) + 1, 160)
        end = {"replace": at + len(change), "delete": at + len(change) + 1, "insert": at, "cut": len(data)}[kind]
        data[at:end] = b"" if kind in ("delete", "cut") else change
    return bytes(data)


@st.composite
def hostile_tensors(draw):
    """A good tensor with some of its fields overwritten by any value that the field can hold."""
    message = pb.Tensor()
    message.CopyFrom(draw(st.sampled_from(TENSORS)))
    enum = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5)
    dims = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 4, 8, 2**16])
    for name, values in {
        "dtype": enum,
        "codec": enum,
        "scaling": enum,
        "raw_bytes": st.integers(0, 2**64 - 1) | st.sampled_from([512, 1024]),
        "crc32": st.integers(0, 2**32 - 1),
        "data": st.binary(max_size=64),
        "scales": st.binary(max_size=32),
        "shape": st.lists(dims, max_size=6) | st.permutations(SHAPE),
    }.items():
        if draw(st.integers(0, 3)):
            continue
        if name == "shape":
            message.ClearField("shape")
            message.shape.extend(draw(values))
        else:
            setattr(message, name, draw(values))
    return message


def only_our_errors(function, *args, **kwargs):
    text = ""
    try:
        function(*args, **kwargs)
    except EcdiffError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 500


def fuzz_client(data):
    assembler = Assembler(pb.ClientMessage, 4096)
    only_our_errors(assembler.push, pb.ClientMessage(fragment=pb.Fragment(total_bytes=len(data), data=data)))
    try:
        message = pb.ClientMessage.FromString(data)
    except DecodeError:
        return
    only_our_errors(assembler.push, message)
    only_our_errors(decode_open_header, message)
    only_our_errors(decode_client, message, specs=CLIENT_SPECS)


def fuzz_server(data):
    try:
        message = pb.ServerMessage.FromString(data)
    except DecodeError:
        return
    only_our_errors(Assembler(pb.ServerMessage, 4096).push, message)
    only_our_errors(decode_server, message, specs=SERVER_SPECS)


def fuzz_description(data):
    try:
        message = pb.DescribeResponse.FromString(data)
    except DecodeError:
        return
    only_our_errors(decode_description, message)


def fuzz_tensor(message):
    only_our_errors(decode_tensor, message, spec())
    only_our_errors(decode_tensor, message, spec(shape=None, max_bytes=2**20))


CASES = {
    "client": (fuzz_client, hostile_bytes(CLIENT_BYTES)),
    "server": (fuzz_server, hostile_bytes(SERVER_BYTES)),
    "description": (fuzz_description, hostile_bytes(DESCRIPTION_BYTES)),
    "tensor": (fuzz_tensor, hostile_tensors()),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_input_raises_our_errors_only(case):
    function, inputs = CASES[case]
    SHORT(given(inputs)(function))()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", CASES)
def test_much_hostile_input_raises_our_errors_only(case):
    function, inputs = CASES[case]
    LONG(given(inputs)(function))()
