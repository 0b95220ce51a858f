"""Client messages: Open, Credit, HandOff, Correct, Close, Ping."""

from __future__ import annotations

from dataclasses import dataclass

from protos import ecdiff_v1_pb2 as pb
from wire.convert import checks
from wire.convert.parts import (
    ClientSpecs,
    TensorReader,
    TensorWriter,
    decode_embeds,
    decode_plan,
    decode_state,
    encode_embeds,
    encode_state,
)
from wire.errors import InvalidRequest, ProtocolError
from wire.messages import (
    ClientMessage,
    Close,
    Codec,
    Correct,
    Credit,
    Decode,
    HandOff,
    Noise,
    Open,
    Ping,
    Plan,
    PromptEmbeds,
    PromptText,
    Scaling,
    Seed,
    State,
)
from wire.tensors import CodecObserver

MAX_CREDIT = 1024
MAX_GUIDANCE_SCALE = 1000.0
MAX_DEADLINE_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class OpenHeader:
    """What a server looks at before it knows any shape: the request without conditioning, plan and tensors.

    Attributes:
        request_id: For the logs.
        model: Fingerprint, or empty for whatever is served.
        scheduler: Name.
        num_inference_steps: Of the plan, not yet compared with the rest of it.
        height: Picture pixels, 0 for the model's default.
        width: Picture pixels, 0 for the model's default.
        num_images: At least 1.
        num_frames: Of each video, 0 for the model's default.
        prompt_chars: Length of the longer one of prompt and negative prompt, 0 with embeddings.
        codecs: Accepted by the client, best first.
    """

    request_id: str
    model: str
    scheduler: str
    num_inference_steps: int
    height: int
    width: int
    num_images: int
    num_frames: int
    prompt_chars: int
    codecs: tuple[Codec, ...]


def encode_client(message: ClientMessage, *, codec: Codec, observe: CodecObserver | None = None) -> pb.ClientMessage:
    """Return the protobuf message; a lossy `codec` is used for latents only.

    Raises:
        ValueError: A number has no place in its field, an array no dtype on the wire.
        ModelError: An array holds NaN or infinity.
    """
    writer = TensorWriter(codec, observe)
    match message:
        case Open():
            return pb.ClientMessage(open=_encode_open(message, writer))
        case Credit():
            return pb.ClientMessage(credit=pb.Credit(count=message.count))
        case HandOff():
            return pb.ClientMessage(hand_off=pb.HandOff(step_index=message.step_index))
        case Correct():
            latents = writer.lossy(message.latents, Scaling.SCHEDULER)
            return pb.ClientMessage(correct=pb.Correct(step_index=message.step_index, latents=latents))
        case Decode():
            latents = writer.exact(message.latents, Scaling.SCHEDULER)
            return pb.ClientMessage(decode=pb.Decode(latents=latents))
        case Close():
            return pb.ClientMessage(close=pb.Close())
        case Ping():
            return pb.ClientMessage(ping=pb.Ping(t0=message.t0))


def decode_open_header(message: pb.ClientMessage) -> OpenHeader:
    """Look at the first message of a stream, at everything in it that needs no shape.

    Raises:
        ProtocolError: It is not Open.
        VersionMismatch: It is of another protocol version; nothing else of it was read.
        InvalidRequest: A value is out of range.
    """
    if message.WhichOneof("message") != "open":
        raise ProtocolError("the first message of a stream must be Open")
    opening = message.open
    checks.same_version(opening.protocol_version, other_end="the edge", this_end="the cloud")
    checks.require(opening.HasField("plan"), "Open has no plan")
    return OpenHeader(
        request_id=checks.text(opening.request_id, "request_id", min_chars=1, max_chars=checks.MAX_ID_CHARS),
        model=checks.text(opening.model, "model"),
        scheduler=checks.text(opening.scheduler, "scheduler"),
        num_inference_steps=checks.count(opening.plan.num_inference_steps, "num_inference_steps", low=1),
        height=checks.count(opening.height, "height", high=checks.MAX_DIM),
        width=checks.count(opening.width, "width", high=checks.MAX_DIM),
        num_images=checks.count(opening.num_images, "num_images", low=1, high=checks.MAX_DIM),
        num_frames=checks.count(opening.num_frames, "num_frames", high=checks.MAX_DIM),
        prompt_chars=max(len(opening.text.prompt), len(opening.text.negative_prompt)),
        codecs=checks.known_members(Codec, opening.codecs, "codecs"),
    )


def decode_client(
    message: pb.ClientMessage, *, specs: ClientSpecs, observe: CodecObserver | None = None
) -> ClientMessage:
    """Check and return a client message.

    Raises:
        VersionMismatch: Open of another protocol version; nothing else of it was read.
        InvalidRequest: A value is missing, unknown or out of range.
        InvalidTensor: A tensor is not what `specs` say.
        CorruptTensor: A tensor's bytes are damaged.
    """
    reader = TensorReader(specs, observe)
    match message.WhichOneof("message"):
        case "open":
            return _decode_open(message, reader)
        case "credit":
            return Credit(count=checks.count(message.credit.count, "credit", low=1, high=MAX_CREDIT))
        case "hand_off":
            return HandOff(step_index=checks.count(message.hand_off.step_index, "step_index", high=checks.MAX_STEPS))
        case "correct":
            return _decode_correct(message.correct, reader)
        case "decode":
            checks.require(message.decode.HasField("latents"), "Decode has no latents")
            return Decode(latents=reader.latents(message.decode.latents, "latents"))
        case "close":
            return Close()
        case "ping":
            return Ping(t0=checks.number(message.ping.t0, "t0"))
        case "fragment":
            raise ProtocolError("a fragment where a whole message is due")
        case None:
            raise InvalidRequest("a client message of no known kind")


def _encode_open(message: Open, writer: TensorWriter) -> pb.Open:
    opening = pb.Open(
        protocol_version=message.protocol_version,
        request_id=message.request_id,
        model=message.model,
        guidance_scale=message.guidance_scale,
        guidance_rescale=message.guidance_rescale,
        height=message.height,
        width=message.width,
        num_images=message.num_images,
        num_frames=message.num_frames,
        scheduler=message.scheduler,
        start=_encode_start(message.start, writer),
        plan=pb.Plan(**vars(message.plan)),
        stream_latents=message.stream_latents,
        stream_predictions=message.stream_predictions,
        want_prompt_embeds=message.want_prompt_embeds,
        codecs=[pb.Codec.ValueType(codec.value) for codec in message.codecs],
        credit=message.credit,
        deadline_seconds=message.deadline_seconds,
    )
    match message.conditioning:
        case PromptText(prompt=prompt, negative_prompt=negative_prompt):
            opening.text.CopyFrom(pb.PromptText(prompt=prompt, negative_prompt=negative_prompt))
        case PromptEmbeds():
            opening.embeds.CopyFrom(encode_embeds(message.conditioning, writer))
    return opening


def _encode_start(start: Seed | Noise | State, writer: TensorWriter) -> pb.Start:
    match start:
        case Seed():
            return pb.Start(seed=start.seed)
        case Noise():
            return pb.Start(noise=writer.exact(start.noise, Scaling.UNIT_NOISE))
        case State():
            return pb.Start(state=encode_state(start, writer))


def _decode_open(message: pb.ClientMessage, reader: TensorReader) -> Open:
    header = decode_open_header(message)
    opening = message.open
    plan = decode_plan(opening.plan)
    guidance_scale = checks.number(opening.guidance_scale, "guidance_scale", low=0, high=MAX_GUIDANCE_SCALE)
    guidance_rescale = checks.number(opening.guidance_rescale, "guidance_rescale", low=0, high=1)
    credit = checks.count(opening.credit, "credit", high=MAX_CREDIT)
    deadline_seconds = checks.number(opening.deadline_seconds, "deadline_seconds", low=0, high=MAX_DEADLINE_SECONDS)
    # Tensors come last: they cost the most.
    return Open(
        protocol_version=opening.protocol_version,
        request_id=header.request_id,
        model=header.model,
        conditioning=_decode_conditioning(opening, reader),
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        height=header.height,
        width=header.width,
        num_images=header.num_images,
        num_frames=header.num_frames,
        scheduler=header.scheduler,
        start=_decode_start(opening, plan, reader),
        plan=plan,
        stream_latents=opening.stream_latents,
        stream_predictions=opening.stream_predictions,
        want_prompt_embeds=opening.want_prompt_embeds,
        codecs=header.codecs,
        credit=credit,
        deadline_seconds=deadline_seconds,
    )


def _decode_conditioning(message: pb.Open, reader: TensorReader) -> PromptText | PromptEmbeds:
    match message.WhichOneof("conditioning"):
        case "text":
            return PromptText(prompt=message.text.prompt, negative_prompt=message.text.negative_prompt)
        case "embeds":
            return decode_embeds(message.embeds, reader)
        case None:
            raise InvalidRequest("Open has neither a prompt nor embeddings")


def _decode_start(message: pb.Open, plan: Plan, reader: TensorReader) -> Seed | Noise | State:
    match message.start.WhichOneof("from"):
        case "seed":
            # Picture j draws from seed + j, and a generator's seed has 64 bits.
            last_seed = message.start.seed + message.num_images - 1
            checks.require(last_seed < 2**64, f"seed + num_images - 1 must be below 2**64, not {last_seed}")
            return Seed(seed=message.start.seed)
        case "noise":
            return Noise(noise=reader.noise(message.start.noise))
        case "state":
            step_index, steps = message.start.state.step_index, plan.num_inference_steps
            checks.require(step_index < steps, f"a start at step {step_index} of {steps} leaves nothing to run")
            return decode_state(message.start.state, reader)
        case None:
            raise InvalidRequest("Open says nothing of where to start: seed, noise or state")


def _decode_correct(message: pb.Correct, reader: TensorReader) -> Correct:
    steps = reader.specs.num_inference_steps
    step_index = checks.count(message.step_index, "the correction's step_index", high=steps - 1)
    checks.require(message.HasField("latents"), "Correct has no latents")
    return Correct(step_index=step_index, latents=reader.latents(message.latents, "latents"))
