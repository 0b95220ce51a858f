"""Messages as protobuf and back: the one place that knows protobuf fields, and the border of remote input.

Whatever `decode_*` returns has been checked: numbers are finite and within range, texts and lists have a
bounded length, enums are known, tensors passed every check of `wire.tensors`. What depends on the
session's state (is a correction welcome now?) is the session's to check.

A server that reads the first message knows no shapes yet, so it takes `Open` in two looks:
`decode_open_header` checks the protocol version and returns what model and limits are checked against;
from it the server derives shapes, and `decode_client` with these specs does the rest.

A lossy codec is for latents and predictions. Embeddings and noise travel as `raw` where the codec of the
session is lossy, so their specs should always welcome `wire.codecs.LOSSLESS_CODECS`.
"""

from __future__ import annotations

from wire.convert.client import OpenHeader, decode_client, decode_open_header, encode_client
from wire.convert.description import decode_description, encode_description
from wire.convert.parts import ClientSpecs, ServerSpecs
from wire.convert.server import decode_server, encode_server

__all__ = [
    "ClientSpecs",
    "OpenHeader",
    "ServerSpecs",
    "decode_client",
    "decode_description",
    "decode_open_header",
    "decode_server",
    "encode_client",
    "encode_description",
    "encode_server",
]
