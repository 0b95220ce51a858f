"""Server messages: Opened, Step, HandedOff, Correction, Finished, Heartbeat, Pong."""

from __future__ import annotations

import time

from protos import ecdiff_v1_pb2 as pb
from wire.chain import Chain
from wire.clock import stamp_seconds
from wire.convert import checks
from wire.convert.parts import (
    ServerSpecs,
    TensorReader,
    TensorWriter,
    decode_embeds,
    decode_model,
    decode_state,
    encode_embeds,
    encode_model,
    encode_state,
)
from wire.convert.pixels import decode_pixels, encode_pixels
from wire.errors import InvalidRequest, InvalidTensor, ProtocolError
from wire.messages import (
    Codec,
    Correction,
    Decoded,
    DType,
    Finished,
    HandedOff,
    Heartbeat,
    Opened,
    Pong,
    Scaling,
    ServerMessage,
    Source,
    State,
    Step,
    Totals,
)
from wire.tensors import CodecObserver

_NO_EXTRAPOLATION_ERROR = -1.0  # the schema's word for None


def encode_server(
    message: ServerMessage, *, codec: Codec, chain: Chain | None = None, observe: CodecObserver | None = None
) -> pb.ServerMessage:
    """Return the protobuf message; `chain` is this end's of the stream, for int8-delta.

    `encode_seconds` and `sent_at` of Step, HandedOff and Finished are measured here, whatever the message
    says. A lossy `codec` is used for latents and predictions only.

    Raises:
        ValueError: A number has no place in its field, an array no dtype on the wire.
        ModelError: An array holds NaN or infinity.
    """
    writer = TensorWriter(codec, observe, chain)
    match message:
        case Opened():
            return pb.ServerMessage(opened=_encode_opened(message, writer))
        case Step():
            return pb.ServerMessage(step=_encode_step(message, writer))
        case HandedOff():
            state, totals, encode_seconds = _encode_end(message, writer)
            handed_off = pb.HandedOff(
                state=state, totals=totals, wait_seconds=message.wait_seconds, encode_seconds=encode_seconds
            )
            handed_off.sent_at = stamp_seconds()
            return pb.ServerMessage(handed_off=handed_off)
        case Finished():
            state, totals, encode_seconds = _encode_end(message, writer)
            finished = pb.Finished(
                state=state, totals=totals, wait_seconds=message.wait_seconds, encode_seconds=encode_seconds
            )
            finished.sent_at = stamp_seconds()
            return pb.ServerMessage(finished=finished)
        case Correction():
            return pb.ServerMessage(correction=_encode_correction(message, writer))
        case Decoded():
            decoded = pb.Decoded(
                pixels=encode_pixels(message.pixels),
                compute_seconds=message.compute_seconds,
                queue_seconds=message.queue_seconds,
            )
            return pb.ServerMessage(decoded=decoded)
        case Heartbeat():
            return pb.ServerMessage(heartbeat=pb.Heartbeat(**vars(message)))
        case Pong():
            return pb.ServerMessage(pong=pb.Pong(**vars(message)))


def decode_server(
    message: pb.ServerMessage,
    *,
    specs: ServerSpecs,
    chain: Chain | None = None,
    observe: CodecObserver | None = None,
) -> ServerMessage:
    """Check and return a server message; `chain` is this end's of the stream, for int8-delta.

    Raises:
        VersionMismatch: Opened of another protocol version; nothing else of it was read.
        InvalidTensor: A tensor is not what `specs` say.
        CorruptTensor: A tensor's bytes are damaged.
        ProtocolError: A value is missing, unknown or out of range. (Not InvalidRequest: that is what a
            cloud answers to the edge, and the edge must tell its own fault from the cloud's.)
    """
    try:
        return _decode_server(message, TensorReader(specs, observe, chain))
    except InvalidTensor:
        raise
    except InvalidRequest as error:
        raise ProtocolError(f"the cloud sent nonsense: {error}") from error


def _decode_server(message: pb.ServerMessage, reader: TensorReader) -> ServerMessage:
    match message.WhichOneof("message"):
        case "opened":
            return _decode_opened(message.opened, reader)
        case "step":
            return _decode_step(message.step, reader)
        case "handed_off":
            state, totals = _decode_end(message.handed_off, reader)
            return HandedOff(state=state, totals=totals, **_decode_times(message.handed_off))
        case "finished":
            state, totals = _decode_end(message.finished, reader)
            return Finished(state=state, totals=totals, **_decode_times(message.finished))
        case "correction":
            return _decode_correction(message.correction, reader)
        case "decoded":
            return Decoded(
                pixels=decode_pixels(message.decoded.pixels, reader.pixels_shape),
                compute_seconds=checks.seconds(message.decoded.compute_seconds, "compute_seconds"),
                queue_seconds=checks.seconds(message.decoded.queue_seconds, "queue_seconds"),
            )
        case "heartbeat":
            return _decode_heartbeat(message.heartbeat, reader)
        case "pong":
            return Pong(
                t0=checks.stamp(message.pong.t0, "t0"),
                t1=checks.stamp(message.pong.t1, "t1"),
                t2=checks.stamp(message.pong.t2, "t2"),
            )
        case "fragment":
            raise ProtocolError("a fragment where a whole message is due")
        case None:
            raise InvalidRequest("a message of no known kind")


def _encode_opened(message: Opened, writer: TensorWriter) -> pb.Opened:
    opened = pb.Opened(
        protocol_version=message.protocol_version,
        session_id=message.session_id,
        model=encode_model(message.model),
        scheduler_class=message.scheduler_class,
        scheduler_config=message.scheduler_config,
        timesteps=message.timesteps,
        sigmas=message.sigmas,
        latents_shape=message.latents_shape,
        latents_dtype=pb.DType.ValueType(message.latents_dtype.value),
        codec=pb.Codec.ValueType(message.codec.value),
        encode_prompt_seconds=message.encode_prompt_seconds,
    )
    if message.prompt_embeds is not None:
        opened.prompt_embeds.CopyFrom(encode_embeds(message.prompt_embeds, writer))
    return opened


def _decode_opened(message: pb.Opened, reader: TensorReader) -> Opened:
    checks.same_version(message.protocol_version, other_end="the cloud", this_end="the edge")
    checks.require(message.HasField("model"), "Opened has no model")
    num_steps = checks.count(len(message.timesteps), "the number of timesteps", low=1, high=checks.MAX_STEPS)
    checks.require(
        len(message.sigmas) == num_steps + 1,
        f"{num_steps} timesteps need {num_steps + 1} sigmas, not {len(message.sigmas)}",
    )
    num_axes = len(message.model.layout)
    checks.require(
        len(message.latents_shape) == num_axes,
        f"latents_shape has {len(message.latents_shape)} dimensions, not {num_axes}",
    )
    return Opened(
        protocol_version=message.protocol_version,
        session_id=checks.text(message.session_id, "session_id", min_chars=1, max_chars=checks.MAX_ID_CHARS),
        model=decode_model(message.model),
        scheduler_class=checks.text(message.scheduler_class, "scheduler_class", min_chars=1),
        scheduler_config=checks.json_object(message.scheduler_config, "scheduler_config"),
        timesteps=tuple(checks.number(timestep, "a timestep") for timestep in message.timesteps),
        sigmas=tuple(checks.number(sigma, "a sigma", low=0) for sigma in message.sigmas),
        latents_shape=tuple(
            checks.count(dim, "a dimension of latents_shape", low=1, high=checks.MAX_DIM)
            for dim in message.latents_shape
        ),
        latents_dtype=checks.member(DType, message.latents_dtype, "latents_dtype"),
        codec=checks.member(Codec, message.codec, "codec"),
        prompt_embeds=decode_embeds(message.prompt_embeds, reader) if message.HasField("prompt_embeds") else None,
        encode_prompt_seconds=checks.seconds(message.encode_prompt_seconds, "encode_prompt_seconds"),
    )


def _encode_step(message: Step, writer: TensorWriter) -> pb.Step:
    error = message.extrapolation_error
    step = pb.Step(
        step_index=message.step_index,
        source=pb.Source.ValueType(message.source.value),
        extrapolation_error=_NO_EXTRAPOLATION_ERROR if error is None else error,
        compute_seconds=message.compute_seconds,
        queue_seconds=message.queue_seconds,
        wait_seconds=message.wait_seconds,
    )
    started = time.perf_counter()
    # In the order of the trajectory: each follows the one before it.
    if message.latents_before is not None:
        step.latents_before.CopyFrom(writer.streamed(message.latents_before, Scaling.SCHEDULER))
    if message.latents is not None:
        step.latents.CopyFrom(writer.streamed(message.latents, Scaling.SCHEDULER))
    if message.prediction is not None:
        step.prediction.CopyFrom(writer.streamed(message.prediction, Scaling.PREDICTION))
    step.encode_seconds = time.perf_counter() - started
    step.sent_at = stamp_seconds()
    return step


def _decode_step(message: pb.Step, reader: TensorReader) -> Step:
    steps = reader.specs.num_inference_steps
    error = message.extrapolation_error
    source = checks.member(Source, message.source, "source")
    checks.require(source is not Source.EDGE, "the cloud's step has the edge for its source")
    latents_before = latents = None
    if message.HasField("latents_before"):
        latents_before = reader.streamed_latents(message.latents_before, "latents_before")
    if message.HasField("latents"):
        latents = reader.streamed_latents(message.latents, "latents")
    return Step(
        step_index=checks.count(message.step_index, "step_index", high=steps - 1),
        source=source,
        extrapolation_error=None
        if error == _NO_EXTRAPOLATION_ERROR
        else checks.number(error, "extrapolation_error", low=0),
        compute_seconds=checks.seconds(message.compute_seconds, "compute_seconds"),
        queue_seconds=checks.seconds(message.queue_seconds, "queue_seconds"),
        wait_seconds=checks.seconds(message.wait_seconds, "wait_seconds"),
        encode_seconds=checks.seconds(message.encode_seconds, "encode_seconds"),
        sent_at=checks.stamp(message.sent_at, "sent_at"),
        latents=latents,
        latents_before=latents_before,
        prediction=reader.streamed_prediction(message.prediction) if message.HasField("prediction") else None,
    )


def _encode_end(message: HandedOff | Finished, writer: TensorWriter) -> tuple[pb.State, pb.Totals, float]:
    started = time.perf_counter()
    state = encode_state(message.state, writer)
    return state, pb.Totals(**vars(message.totals)), time.perf_counter() - started


def _decode_end(message: pb.HandedOff | pb.Finished, reader: TensorReader) -> tuple[State, Totals]:
    checks.require(message.HasField("state"), "the end of the cloud's part has no state")
    checks.require(message.HasField("totals"), "the end of the cloud's part has no totals")
    totals = Totals(
        nfe_cloud=message.totals.nfe_cloud,
        nfe_extrapolated=message.totals.nfe_extrapolated,
        nfe_correction=message.totals.nfe_correction,
        compute_seconds=checks.seconds(message.totals.compute_seconds, "the total of compute_seconds"),
        queue_seconds=checks.seconds(message.totals.queue_seconds, "the total of queue_seconds"),
    )
    return decode_state(message.state, reader), totals


def _decode_times(message: pb.HandedOff | pb.Finished) -> dict[str, float]:
    return {
        "wait_seconds": checks.seconds(message.wait_seconds, "wait_seconds"),
        "encode_seconds": checks.seconds(message.encode_seconds, "encode_seconds"),
        "sent_at": checks.stamp(message.sent_at, "sent_at"),
    }


def _encode_correction(message: Correction, writer: TensorWriter) -> pb.Correction:
    return pb.Correction(
        step_index=message.step_index,
        prediction=writer.lossy(message.prediction, Scaling.PREDICTION),
        compute_seconds=message.compute_seconds,
        queue_seconds=message.queue_seconds,
    )


def _decode_correction(message: pb.Correction, reader: TensorReader) -> Correction:
    steps = reader.specs.num_inference_steps
    checks.require(message.HasField("prediction"), "Correction has no prediction")
    return Correction(
        step_index=checks.count(message.step_index, "the correction's step_index", high=steps - 1),
        compute_seconds=checks.seconds(message.compute_seconds, "compute_seconds"),
        queue_seconds=checks.seconds(message.queue_seconds, "queue_seconds"),
        prediction=reader.prediction(message.prediction),
    )


def _decode_heartbeat(message: pb.Heartbeat, reader: TensorReader) -> Heartbeat:
    steps = reader.specs.num_inference_steps
    return Heartbeat(
        queue_position=message.queue_position, step_index=checks.count(message.step_index, "step_index", high=steps)
    )
