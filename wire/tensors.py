"""Tensors as self-describing messages: dtype, shape, codec, size, checksum, and what the numbers are.

`decode_tensor` refuses hostile input before it allocates anything, in the order of docs/protocol.md.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from protos import ecdiff_v1_pb2 as pb
from wire.chain import Chain
from wire.codecs import CODECS, DELTA, Encoded
from wire.errors import CorruptTensor, InvalidTensor, ModelError
from wire.messages import Array, Codec, DType, Scaling

_NUMPY_DTYPES: dict[DType, np.dtype[np.generic]] = {
    DType.FLOAT32: np.dtype("<f4"),
    DType.FLOAT16: np.dtype("<f2"),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_DTYPES = {numpy_type: dtype for dtype, numpy_type in _NUMPY_DTYPES.items()}
_DTYPE_NUMBERS = {dtype.value: dtype for dtype in DType}
_CODEC_NUMBERS = {codec.value: codec for codec in Codec}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What a receiver accepts at one place of a message.

    Attributes:
        shape: The negotiated shape; None inside it leaves that dimension open, None for the whole leaves
            all of them open.
        dtypes: Element types.
        codecs: Codecs.
        scaling: What the numbers must be.
        max_bytes: Cap on the decoded size.
        rank: Number of dimensions.
        max_dim: Cap on each dimension.
    """

    shape: tuple[int | None, ...] | None
    dtypes: frozenset[DType]
    codecs: frozenset[Codec]
    scaling: Scaling
    max_bytes: int
    rank: int = 4
    max_dim: int = 65536

    def __post_init__(self) -> None:
        if self.shape is not None and len(self.shape) != self.rank:
            raise ValueError(f"shape {self.shape} has {len(self.shape)} dimensions, rank says {self.rank}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {self.max_bytes}")


@dataclass(frozen=True, kw_only=True)
class CodecEvent:
    """One tensor was encoded or decoded; `wire_bytes` counts data and scales."""

    operation: Literal["encode", "decode"]
    codec: Codec
    seconds: float
    raw_bytes: int
    wire_bytes: int
    scaling: Scaling


CodecObserver = Callable[[CodecEvent], None]


def numpy_dtype(dtype: DType) -> np.dtype[np.generic]:
    """Return the little-endian numpy dtype."""
    return _NUMPY_DTYPES[dtype]


def dtype_of(array: Array) -> DType:
    """Return the wire's name for the element type of `array`.

    Raises:
        ValueError: It is not float32, float16 or bfloat16 (little endian).
    """
    try:
        return _DTYPES[array.dtype]
    except KeyError:
        raise ValueError(f"a tensor must be float32, float16 or bfloat16, not {array.dtype}") from None


@dataclass(frozen=True, kw_only=True)
class Link:
    """A tensor's place in a chain.

    Attributes:
        chain: Of this end of the stream.
        kind: Which of its tensors follow each other.
    """

    chain: Chain
    kind: str


def encode_tensor(
    array: Array,
    *,
    codec: Codec,
    scaling: Scaling,
    link: Link | None = None,
    observe: CodecObserver | None = None,
) -> pb.Tensor:
    """Encode `array`, of any rank and strides; int8-delta as a difference where `link` has what it may be taken to.

    Raises:
        ValueError: The dtype has no place on the wire.
        ModelError: The array holds NaN or infinity; the receiver would refuse it.
    """
    started = time.perf_counter()
    dtype = dtype_of(array)
    if not _all_finite(array):
        raise ModelError(f"the {scaling.name.lower()} tensor to be sent holds NaN or infinity")
    elements = np.ascontiguousarray(array).reshape(-1)
    encoded, base = _encode_linked(elements, link) if codec is Codec.INT8_DELTA else (None, None)
    encoded = encoded or CODECS[codec].encode(elements)
    message = pb.Tensor(
        dtype=pb.DType.ValueType(dtype.value),
        shape=array.shape,
        codec=pb.Codec.ValueType(codec.value),
        raw_bytes=array.nbytes,
        crc32=_checksum(encoded.decoded),
        data=encoded.data,
        scales=encoded.scales,
        scaling=pb.Scaling.ValueType(scaling.value),
        base_crc32=None if base is None else _checksum(base),
    )
    if codec is Codec.INT8_DELTA and link is not None:
        link.chain.advance(link.kind, encoded.decoded, is_delta=base is not None)
    _report("encode", message, codec, scaling, started, observe)
    return message


def _encode_linked(elements: Array, link: Link | None) -> tuple[Encoded, Array] | tuple[None, None]:
    """Return `elements` as a difference, and to what; nothing where a key frame is due."""
    base = None if link is None else link.chain.base_to_send(link.kind)
    if base is None or (base.dtype, base.size) != (elements.dtype, elements.size):
        return None, None
    encoded = DELTA.encode_delta(elements, base)
    return (None, None) if encoded is None else (encoded, base)


def decode_tensor(
    message: pb.Tensor,
    spec: TensorSpec,
    *,
    name: str = "tensor",
    link: Link | None = None,
    observe: CodecObserver | None = None,
) -> Array:
    """Return the array, writable and of its own memory, after every check of docs/protocol.md in its order.

    Args:
        message: What came from the other end.
        spec: What is welcome here.
        name: What error texts call it.
        link: Where int8-delta finds what it is a difference to.
        observe: Called once, when the tensor is good.

    Raises:
        InvalidTensor: Dtype, rank, size, shape, codec or scaling is not what `spec` says; nothing was allocated.
        CorruptTensor: The bytes do not decode to what is declared, or hold NaN or infinity.
    """
    started = time.perf_counter()
    dtype, shape = _check_declaration(message, spec, name)
    codec = _check_agreed(message, spec, name, shape)
    base = _base_of(message, codec, link, name, numpy_dtype(dtype), math.prod(shape))
    if base is None:
        elements = CODECS[codec].decode(message.data, message.scales, numpy_dtype(dtype), math.prod(shape))
    else:
        elements = DELTA.decode_delta(message.data, message.scales, base)
    if _checksum(elements) != message.crc32:
        raise CorruptTensor(f"the checksum of {name} is wrong")
    if not _all_finite(elements):
        raise CorruptTensor(f"{name} holds NaN or infinity")
    if codec is Codec.INT8_DELTA and link is not None:
        # A copy: what is returned may be changed by whoever has it.
        link.chain.advance(link.kind, elements.copy(), is_delta=base is not None)
    _report("decode", message, codec, spec.scaling, started, observe)
    return elements.reshape(shape)


def _base_of(
    message: pb.Tensor, codec: Codec, link: Link | None, name: str, dtype: np.dtype[np.generic], num_elements: int
) -> Array | None:
    """Return what a tensor is a difference to, flat; None of a key frame and of other codecs.

    Raises:
        InvalidTensor: It is one where none may be.
        CorruptTensor: This end has another tensor there, or none.
    """
    if not message.HasField("base_crc32"):
        return None
    if codec is not Codec.INT8_DELTA or link is None:
        raise InvalidTensor(f"{name} is written as a difference, and nothing comes before it here")
    base = link.chain.base(link.kind)
    if base is None or (base.dtype, base.size) != (dtype, num_elements) or _checksum(base) != message.base_crc32:
        raise CorruptTensor(f"{name} is a difference to a tensor that did not come before it")
    return base


def _check_declaration(message: pb.Tensor, spec: TensorSpec, name: str) -> tuple[DType, tuple[int, ...]]:
    """Check what the tensor says of itself: dtype, rank and dimensions, size."""
    dtype = _DTYPE_NUMBERS.get(message.dtype)
    if dtype not in spec.dtypes:
        raise InvalidTensor(
            f"{name} must be one of {_names(spec.dtypes)}, not {dtype.name.lower() if dtype else message.dtype}"
        )
    if len(message.shape) != spec.rank:
        raise InvalidTensor(f"{name} must have {spec.rank} dimensions, not {len(message.shape)}")
    shape = tuple(message.shape)
    if not all(1 <= dim <= spec.max_dim for dim in shape):
        raise InvalidTensor(f"each dimension of {name} must lie in 1..{spec.max_dim}, not {shape}")
    # math.prod has no limit where np.prod wraps around.
    declared_bytes = math.prod(shape) * numpy_dtype(dtype).itemsize
    if declared_bytes != message.raw_bytes:
        raise InvalidTensor(f"{name} of shape {shape} has {declared_bytes} bytes, not {message.raw_bytes}")
    if declared_bytes > spec.max_bytes:
        raise InvalidTensor(f"{name} has {declared_bytes} bytes, the cap is {spec.max_bytes}")
    return dtype, shape


def _check_agreed(message: pb.Tensor, spec: TensorSpec, name: str, shape: tuple[int, ...]) -> Codec:
    """Check the declaration against what the session negotiated: shape, codec, scaling."""
    if spec.shape is not None and any(
        want is not None and dim != want for dim, want in zip(shape, spec.shape, strict=True)
    ):
        raise InvalidTensor(f"{name} must have the shape {spec.shape}, not {shape}")
    codec = _CODEC_NUMBERS.get(message.codec)
    if codec not in spec.codecs:
        raise InvalidTensor(
            f"{name} must be written as one of {_names(spec.codecs)}, not {codec.label if codec else message.codec}"
        )
    if message.scaling != spec.scaling.value:
        raise InvalidTensor(f"{name} must have scaling {spec.scaling.name.lower()}, not number {message.scaling}")
    return codec


def _names(members: frozenset[DType] | frozenset[Codec]) -> str:
    return ", ".join(sorted(member.name.lower().replace("_", "-") for member in members))


def _all_finite(array: Array) -> bool:
    # Signalling NaNs make numpy warn about the very thing that is asked.
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array).all())


def _checksum(elements: Array) -> int:
    return zlib.crc32(elements.view(np.uint8).data)


def _report(
    operation: Literal["encode", "decode"],
    message: pb.Tensor,
    codec: Codec,
    scaling: Scaling,
    started: float,
    observe: CodecObserver | None,
) -> None:
    if observe is not None:
        observe(
            CodecEvent(
                operation=operation,
                codec=codec,
                seconds=time.perf_counter() - started,
                raw_bytes=message.raw_bytes,
                wire_bytes=len(message.data) + len(message.scales),
                scaling=scaling,
            )
        )
