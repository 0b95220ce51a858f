import tracemalloc

import pytest
from wire_samples import CLIENT_MESSAGES, OPEN, SERVER_MESSAGES

from protos import ecdiff_v1_pb2 as pb
from wire.convert import encode_client, encode_server
from wire.errors import LimitExceeded, ProtocolError
from wire.framing import Assembler, fragments
from wire.messages import Codec

MESSAGES = [encode_client(message, codec=Codec.RAW) for message in CLIENT_MESSAGES] + [
    encode_server(message, codec=Codec.RAW) for message in SERVER_MESSAGES
]
BIG = max((message for message in MESSAGES if isinstance(message, pb.ClientMessage)), key=lambda m: m.ByteSize())


def piece(total_bytes, data):
    return pb.ClientMessage(fragment=pb.Fragment(total_bytes=total_bytes, data=data))


def client_assembler(max_bytes=1 << 20):
    return Assembler(pb.ClientMessage, max_bytes)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.WhichOneof("message"))
@pytest.mark.parametrize("limit_bytes", [1, 100, 512 * 1024])
def test_pieces_make_the_message_again(message, limit_bytes):
    pieces = fragments(message, limit_bytes)
    assembler = Assembler(type(message), 1 << 20)
    results = [assembler.push(part) for part in pieces]
    assert results[:-1] == [None] * (len(pieces) - 1)
    assert results[-1] == message
    assert assembler.push(message) == message, "ready for the next"


def test_small_messages_stay_whole():
    size_bytes = BIG.ByteSize()
    assert fragments(BIG, size_bytes)[0] is BIG
    pieces = fragments(BIG, size_bytes - 1)
    assert [len(part.fragment.data) for part in pieces] == [size_bytes - 1, 1]
    assert {part.fragment.total_bytes for part in pieces} == {size_bytes}


def test_cap_is_checked_on_the_first_fragment_before_buffering():
    first = piece(1 << 40, bytes(1 << 20))
    assembler = client_assembler(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="a message of 1099511627776 bytes, the cap is 1073741824"):
            assembler.push(first)
        # Reading the field makes one copy of the piece; the buffer would be another.
        assert tracemalloc.get_traced_memory()[0] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_cap_itself_is_legal():
    size_bytes = BIG.ByteSize()
    results = [client_assembler(size_bytes).push(part) for part in fragments(BIG, size_bytes)]
    assert results == [BIG]
    with pytest.raises(LimitExceeded):
        client_assembler(size_bytes - 1).push(fragments(BIG, size_bytes - 1)[0])


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([piece(10, b"")], "a fragment is empty"),
        ([piece(0, b"")], "a fragment is empty"),
        ([piece(0, b"x")], "more than the 0 bytes"),
        ([piece(10, b"x"), piece(10, b"")], "a fragment is empty"),
        ([piece(10, b"x"), piece(11, b"x")], "a fragment says 11 bytes in all, the first 10"),
        ([piece(10, b"x" * 6), piece(10, b"x" * 5)], "more than the 10 bytes"),
        ([piece(10, b"x" * 11)], "more than the 10 bytes"),
        ([piece(10, b"x"), pb.ClientMessage(close=pb.Close())], "inside another, 1 of 10 bytes into it"),
        ([piece(10, b"x"), pb.ClientMessage()], "inside another"),
        ([piece(4, b"\xff" * 4)], "4 bytes make no message"),
    ],
)
def test_malformed_sequences_are_protocol_errors(pieces, text):
    assembler = client_assembler()
    for part in pieces[:-1]:
        assert assembler.push(part) is None
    with pytest.raises(ProtocolError, match=text):
        assembler.push(pieces[-1])


def test_fragments_inside_fragments_are_refused():
    inner = piece(10, b"x").SerializeToString()
    with pytest.raises(ProtocolError, match="fragments inside fragments"):
        client_assembler().push(piece(len(inner), inner))


def test_text_that_is_not_unicode_makes_no_message():
    broken = encode_client(OPEN, codec=Codec.RAW).SerializeToString().replace(b"0b5e-42", b"0b5e-\xff2")
    with pytest.raises(ProtocolError, match="make no message"):
        client_assembler().push(piece(len(broken), broken))
