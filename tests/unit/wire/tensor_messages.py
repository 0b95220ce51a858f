"""A good tensor as protobuf, and the same spoilt."""

from wire_samples import gaussian, spec

from wire.messages import Codec, DType, Scaling
from wire.tensors import encode_tensor

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
