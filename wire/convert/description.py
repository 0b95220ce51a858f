"""The answer to Describe."""

from __future__ import annotations

from collections.abc import Sequence

from protos import ecdiff_v1_pb2 as pb
from wire.convert import checks
from wire.convert.parts import decode_model, encode_model
from wire.errors import InvalidRequest, ProtocolError
from wire.messages import Codec, Description, Limits, Load


def encode_description(description: Description) -> pb.DescribeResponse:
    """Return the protobuf message."""
    return pb.DescribeResponse(
        protocol_version=description.protocol_version,
        version=description.version,
        model=encode_model(description.model),
        limits=pb.Limits(**vars(description.limits)),
        load=pb.Load(**vars(description.load)),
        schedulers=description.schedulers,
        predictors=description.predictors,
        codecs=[pb.Codec.ValueType(codec.value) for codec in description.codecs],
    )


def decode_description(message: pb.DescribeResponse) -> Description:
    """Check and return a description.

    Raises:
        VersionMismatch: The service speaks another protocol version; nothing else was read.
        ProtocolError: A value is missing, unknown or out of range.
    """
    checks.same_version(message.protocol_version, other_end="the cloud", this_end="the edge")
    try:
        return _decode(message)
    except InvalidRequest as error:
        raise ProtocolError(f"the cloud describes itself in nonsense: {error}") from error


def _decode(message: pb.DescribeResponse) -> Description:
    checks.require(message.HasField("model"), "it serves no model")
    checks.require(message.HasField("limits"), "it names no limits")
    limits, load = message.limits, message.load
    return Description(
        protocol_version=message.protocol_version,
        version=checks.text(message.version, "version"),
        model=decode_model(message.model),
        limits=Limits(
            max_num_inference_steps=limits.max_num_inference_steps,
            max_height=limits.max_height,
            max_width=limits.max_width,
            max_num_images=limits.max_num_images,
            max_prompt_chars=limits.max_prompt_chars,
            max_tensor_bytes=limits.max_tensor_bytes,
            max_sessions=limits.max_sessions,
            max_num_frames=limits.max_num_frames,
        ),
        load=Load(
            sessions=load.sessions,
            queue=load.queue,
            step_seconds=checks.number(load.step_seconds, "step_seconds", low=0, high=checks.MAX_SECONDS),
        ),
        schedulers=_names(message.schedulers, "schedulers"),
        predictors=_names(message.predictors, "predictors"),
        codecs=checks.known_members(Codec, message.codecs, "codecs"),
    )


def _names(values: Sequence[str], what: str) -> tuple[str, ...]:
    checks.require(
        len(values) <= checks.MAX_LIST_ITEMS, f"{what} lists {len(values)} items, the cap is {checks.MAX_LIST_ITEMS}"
    )
    return tuple(checks.text(value, f"one of {what}", min_chars=1) for value in values)
