"""Coverage-guided fuzzing of everything that reads remote bytes: `python -m tests.fuzz.decoder -runs=100000`.

Arguments are libFuzzer's (`-help=1` lists them). What it found interesting is kept in out/fuzz, where it goes on the
next time; an input that breaks a rule is written to out/, and `python -m tests.fuzz.decoder FILE` runs it again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    print("nothing was fuzzed: atheris is not installed, pip install 'ecdiff[fuzz]' has it for Linux up to Python 3.13")
    sys.exit(0)

with atheris.instrument_imports(include=["wire"]):
    from google.protobuf.message import DecodeError

    from protos import ecdiff_v1_pb2 as pb
    from tests.unit.wire.wire_samples import (
        CLIENT_BYTES,
        CLIENT_SPECS,
        DESCRIPTION_BYTES,
        SERVER_BYTES,
        SERVER_SPECS,
        TENSORS,
        spec,
    )
    from wire.convert import (
        decode_client,
        decode_description,
        decode_open_header,
        decode_server,
    )
    from wire.errors import EcdiffError
    from wire.framing import Assembler
    from wire.tensors import decode_tensor

CORPUS = Path("out/fuzz")
MAX_PIECES = 64


def client(data: bytes) -> None:
    """A client message, in the two looks that a server takes."""
    message = pb.ClientMessage.FromString(data)
    decode_client(message, specs=CLIENT_SPECS)
    decode_open_header(message)


def server(data: bytes) -> None:
    """A server message."""
    decode_server(pb.ServerMessage.FromString(data), specs=SERVER_SPECS)


def description(data: bytes) -> None:
    """The answer to Describe."""
    decode_description(pb.DescribeResponse.FromString(data))


def tensor(data: bytes) -> None:
    """A tensor where one shape is welcome, and where any is."""
    message = pb.Tensor.FromString(data)
    try:
        decode_tensor(message, spec())
    except EcdiffError:
        decode_tensor(message, spec(shape=None, max_bytes=2**20))


def stream(data: bytes) -> None:
    """Fragments: each begins with its length and the total that it announces, a byte each."""
    assembler, at = Assembler(pb.ClientMessage, 4096), 0
    for _ in range(MAX_PIECES):
        if at + 2 > len(data):
            return
        size, total = data[at], data[at + 1]
        fragment = pb.Fragment(total_bytes=total, data=data[at + 2 : at + 2 + size])
        if (whole := assembler.push(pb.ClientMessage(fragment=fragment))) is not None:
            decode_client(whole, specs=CLIENT_SPECS)
        at += 2 + size


TARGETS: tuple[Callable[[bytes], None], ...] = (client, server, description, tensor, stream)


def one_input(data: bytes) -> None:
    """Give the first byte's target the rest; only errors of ours may come of it."""
    if not data:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except DecodeError:
        return
    except EcdiffError as refusal:
        text = str(refusal)
    else:
        return
    assert "\n" not in text, f"more than one line: {text}"
    assert len(text) < 500, f"a long line: {text}"


def seeds() -> list[bytes]:
    """Return real messages, each behind its target's byte."""
    samples = {
        client: CLIENT_BYTES,
        server: SERVER_BYTES,
        description: DESCRIPTION_BYTES,
        tensor: [each.SerializeToString() for each in TENSORS],
        stream: [
            bytes([half, len(each)]) + each[:half] + bytes([len(each) - half, len(each)]) + each[half:]
            for each in CLIENT_BYTES
            if len(each) < 256
            for half in [len(each) // 2]
        ],
    }
    return [bytes([TARGETS.index(target)]) + each for target, data in samples.items() for each in data]


def main() -> None:
    """Fuzz, from the samples and what earlier runs found."""
    arguments = sys.argv
    if all(each.startswith("-") for each in arguments[1:]):
        CORPUS.mkdir(parents=True, exist_ok=True)
        for seed in seeds():
            (CORPUS / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
        arguments = [
            *arguments,
            "-timeout=5",
            "-rss_limit_mb=1024",
            "-max_len=4096",
            "-print_final_stats=1",
            str(CORPUS),
        ]
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
