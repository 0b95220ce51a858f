"""A client's messages as protobuf: good ones, and some with fields as a hostile client would set them."""

import dataclasses

from wire_samples import CLIENT_SPECS, OPEN, STATE

from wire.convert import decode_client, encode_client
from wire.messages import Codec


def encoded(message=OPEN, codec=Codec.RAW):
    return encode_client(message, codec=codec)


def opening(**changes):
    """Open as protobuf, with some fields overwritten the way a hostile client would."""
    message = encoded()
    for name, value in changes.items():
        *path, last = name.split("__")
        target = message.open
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return message


def decode(message, specs=CLIENT_SPECS, observe=None):
    return decode_client(message, specs=specs, observe=observe)


def with_state(**changes):
    return encoded(dataclasses.replace(OPEN, start=dataclasses.replace(STATE, **changes)))
