"""The agent's dataclasses as messages and back; what comes from outside is checked here, once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from google.protobuf.message import Message

from edge_client.file_content import FileContent, InputFile
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from edge_client.series import SERIES, Observation
from orchestrator.plan import PlanOptions
from protos import edge_agent_v1_pb2 as pb
from wire.convert import checks
from wire.errors import InvalidRequest, LimitExceeded
from wire.messages import Array, Codec, DType, Scaling
from wire.tensors import TensorSpec, decode_tensor, encode_tensor

MAX_PATH_CHARS = 4096
MAX_RECORDED_VALUES = 100_000
# Eight pictures of 2048 pixels a side with 16 channels.
MAX_LATENTS_BYTES = 32 * 2**20

M = TypeVar("M", bound=Message)


def copy_fields(value: Any, message: M) -> M:
    """Copy what is not None of a dataclass into the fields of the same names; return the message.

    Nested dataclasses and fields that the message does not have are left out.
    """
    for name, field in message.DESCRIPTOR.fields_by_name.items():
        content = getattr(value, name, None)
        if content is None or field.message_type is not None:
            continue
        if field.is_repeated:
            getattr(message, name).extend(content)
        else:
            setattr(message, name, content)
    return message


def set_fields(message: Message, wanted: type) -> dict[str, Any]:
    """Return the fields of `wanted`, a dataclass, that a message sets; nested ones are left out."""
    names = {field.name for field in fields(wanted)}
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in names and field.message_type is None:
            found[field.name] = tuple(value) if field.is_repeated else value
    return found


# ------------------------------------------------------------------------------ requests


def encode_request(request: GenerationRequest, *, want_latents: bool) -> pb.GenerateRequest:
    """Return the message, with the content of the files that the request names.

    Raises:
        OSError: One of them cannot be read.
    """
    options = request.plan_options
    if options.max_cloud_calls is not None:
        # More calls than steps there cannot be, and any number may be asked for.
        options = replace(options, max_cloud_calls=min(options.max_cloud_calls, options.num_inference_steps))
    message = copy_fields(request, pb.GenerateRequest(want_latents=want_latents))
    copy_fields(options, message.plan_options)
    if request.initial_latents is not None:
        message.initial_latents.CopyFrom(_encode_file(request.initial_latents))
    if request.plan_file is not None:
        message.plan_file.CopyFrom(_encode_file(request.plan_file))
    if request.image is not None:
        message.image.CopyFrom(_encode_file(request.image))
    return message


def decode_request(message: pb.GenerateRequest) -> GenerationRequest:
    """Return the request.

    Raises:
        InvalidRequest: It cannot be served as it stands.
    """
    values = set_fields(message, GenerationRequest)
    values.setdefault("prompt", "")
    if "request_id" in values:
        checks.text(values["request_id"], "request_id", min_chars=1, max_chars=checks.MAX_ID_CHARS)
    for name in ("initial_latents", "plan_file", "image"):
        if message.HasField(name):
            values[name] = _decode_file(getattr(message, name), name)
    try:
        options = PlanOptions(**set_fields(message.plan_options, PlanOptions))
        return GenerationRequest(plan_options=options, **values)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _encode_file(file: InputFile) -> pb.File:
    whole = FileContent.of(file)
    return pb.File(path=whole.path, content=whole.content)


def _decode_file(message: pb.File, name: str) -> FileContent:
    path = checks.text(message.path or name, f"the path of {name}", max_chars=MAX_PATH_CHARS)
    return FileContent(path=path, content=message.content)


# ------------------------------------------------------------------------------ updates


def encode_place(ahead: int) -> pb.GenerateUpdate:
    """Return the update that names a place in the queue."""
    return pb.GenerateUpdate(place=pb.GenerateUpdate.Place(ahead=ahead))


def encode_snapshot(snapshot: Snapshot) -> pb.GenerateUpdate:
    """Return the update that says where a generation stands."""
    return pb.GenerateUpdate(progress=copy_fields(snapshot, pb.GenerateUpdate.Progress()))


def decode_snapshot(message: pb.GenerateUpdate.Progress) -> Snapshot:
    """Return where a generation stands."""
    return Snapshot(**{field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})


def encode_latents(latents: Array) -> Any:
    """Return final latents `[B, C, H, W]`, float32, bit for bit."""
    return encode_tensor(latents, codec=Codec.RAW, scaling=Scaling.SCHEDULER)


def decode_latents(message: Any) -> Array:
    """Return final latents `[B, C, H, W]`, float32.

    Raises:
        EcdiffError: They are not what they say.
    """
    spec = TensorSpec(
        shape=None,
        rank=5 if len(message.shape) == 5 else 4,
        dtypes=frozenset({DType.FLOAT32}),
        codecs=frozenset({Codec.RAW}),
        scaling=Scaling.SCHEDULER,
        max_bytes=MAX_LATENTS_BYTES,
    )
    return decode_tensor(message, spec, name="the final latents")


# ------------------------------------------------------------------------------ observations


def encode_observations(observations: Iterable[Observation]) -> list[pb.Observation]:
    """Return the messages."""
    return [pb.Observation(series=each.series, labels=each.labels, values=each.values) for each in observations]


def decode_observations(messages: Sequence[pb.Observation]) -> list[Observation]:
    """Return what another process of this machine observed.

    Raises:
        InvalidRequest: A series that there is not, or a label or value that it does not have.
        LimitExceeded: More values than any generation has.
    """
    num_values = sum(len(message.values) for message in messages)
    if num_values > MAX_RECORDED_VALUES or len(messages) > MAX_RECORDED_VALUES:
        raise LimitExceeded(f"at most {MAX_RECORDED_VALUES} values are recorded at once, not {num_values}")
    try:
        return [
            Observation(series=each.series, values=tuple(each.values), labels=dict(each.labels)) for each in messages
        ]
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def is_gauge(observation: Observation) -> bool:
    """Whether it says how things stand where it was taken, and nothing elsewhere."""
    return SERIES[observation.series].kind == "gauge"
