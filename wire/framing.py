"""Large messages in pieces: gRPC's receive limit stays small, and the total is capped before buffering."""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from protos import ecdiff_v1_pb2 as pb
from wire.channel import FRAGMENT_BYTES
from wire.errors import LimitExceeded, ProtocolError

Message = TypeVar("Message", pb.ClientMessage, pb.ServerMessage)


def fragments(message: Message, limit_bytes: int = FRAGMENT_BYTES) -> list[Message]:
    """Return `[message]` when it serializes to at most `limit_bytes`, else its pieces in order."""
    if message.ByteSize() <= limit_bytes:
        return [message]
    serialized = message.SerializeToString()
    return [
        type(message)(fragment=pb.Fragment(total_bytes=len(serialized), data=serialized[start : start + limit_bytes]))
        for start in range(0, len(serialized), limit_bytes)
    ]


class Assembler(Generic[Message]):
    """Puts the fragments of one direction of one stream together again.

    Args:
        message_class: `pb.ClientMessage` or `pb.ServerMessage`.
        max_bytes: Cap on one assembled message; checked on the first fragment. It may be raised later.
    """

    def __init__(self, message_class: type[Message], max_bytes: int) -> None:
        self._message_class: type[Message] = message_class
        self.max_bytes = max_bytes
        self._total_bytes = 0
        self._buffer = bytearray()

    def push(self, message: Message) -> Message | None:
        """Take the next message of the stream; return a whole one, or None while pieces are missing.

        Raises:
            LimitExceeded: A first fragment announces more than the cap; nothing was buffered.
            ProtocolError: Another message inside an unfinished sequence, an empty or contradictory
                fragment, or pieces that make no message.
        """
        if message.WhichOneof("message") != "fragment":
            if self._buffer:
                raise ProtocolError(
                    f"a message arrived inside another, {len(self._buffer)} of {self._total_bytes} bytes into it"
                )
            return message
        self._append(message.fragment)
        if len(self._buffer) < self._total_bytes:
            return None
        serialized, self._buffer = self._buffer, bytearray()
        return self._parse(bytes(serialized))

    def _append(self, fragment: pb.Fragment) -> None:
        if not fragment.data:
            raise ProtocolError("a fragment is empty")
        if not self._buffer:
            if fragment.total_bytes > self.max_bytes:
                raise LimitExceeded(f"a message of {fragment.total_bytes} bytes, the cap is {self.max_bytes}")
            self._total_bytes = fragment.total_bytes
        elif fragment.total_bytes != self._total_bytes:
            raise ProtocolError(f"a fragment says {fragment.total_bytes} bytes in all, the first {self._total_bytes}")
        if len(self._buffer) + len(fragment.data) > self._total_bytes:
            raise ProtocolError(f"fragments hold more than the {self._total_bytes} bytes that they announce")
        self._buffer += fragment.data

    def _parse(self, serialized: bytes) -> Message:
        try:
            message = self._message_class.FromString(serialized)
        except DecodeError as error:
            raise ProtocolError(f"the fragments of {len(serialized)} bytes make no message") from error
        if message.WhichOneof("message") == "fragment":
            raise ProtocolError("fragments inside fragments")
        return message
