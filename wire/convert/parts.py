"""Parts that several messages share: tensors by their place, embeddings, states, model descriptions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from protos import ecdiff_v1_pb2 as pb
from wire.chain import Chain
from wire.codecs import LOSSLESS_CODECS
from wire.convert import checks
from wire.errors import InvalidRequest, InvalidTensor
from wire.messages import Array, Codec, DType, ModelDescription, Plan, PromptEmbeds, Scaling, State
from wire.tensors import CodecObserver, Link, TensorSpec, decode_tensor, encode_tensor

LAYOUTS = ("BCHW", "BFCHW", "BCFHW")
"""Orders of the latents' axes: batch, frame, channel, height, width."""
MAX_STATE_TENSORS = 8
MAX_STATE_KEY_CHARS = 64


@dataclass(frozen=True, kw_only=True)
class ClientSpecs:
    """What the cloud welcomes in a client message; None refuses such a tensor.

    Attributes:
        latents: In State and Correct, scheduler scaling.
        noise: In Start.
        embeds: In Open, rank 3.
        pooled_embeds: In Open, rank 2.
        prediction: No client message carries one yet.
        num_inference_steps: Of the session's plan, once known; bounds every step index.
    """

    latents: TensorSpec | None = None
    noise: TensorSpec | None = None
    embeds: TensorSpec | None = None
    pooled_embeds: TensorSpec | None = None
    prediction: TensorSpec | None = None
    num_inference_steps: int = checks.MAX_STEPS

    def __post_init__(self) -> None:
        _check_scalings(self)


@dataclass(frozen=True, kw_only=True)
class ServerSpecs:
    """What the edge welcomes in a server message; None refuses such a tensor.

    Attributes:
        latents: In Step, HandedOff and Finished, scheduler scaling.
        noise: No server message carries any.
        embeds: In Opened, rank 3.
        pooled_embeds: In Opened, rank 2.
        prediction: In Step and Correction.
        num_inference_steps: Of the plan; bounds every step index.
        pixels_shape: In Decoded; None where none were asked for.
    """

    latents: TensorSpec | None = None
    noise: TensorSpec | None = None
    embeds: TensorSpec | None = None
    pooled_embeds: TensorSpec | None = None
    prediction: TensorSpec | None = None
    num_inference_steps: int = checks.MAX_STEPS
    pixels_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_scalings(self)


def _check_scalings(specs: ClientSpecs | ServerSpecs) -> None:
    for name, scaling in (
        ("latents", Scaling.SCHEDULER),
        ("noise", Scaling.UNIT_NOISE),
        ("embeds", Scaling.EMBEDDING),
        ("pooled_embeds", Scaling.EMBEDDING),
        ("prediction", Scaling.PREDICTION),
    ):
        spec: TensorSpec | None = getattr(specs, name)
        if spec is not None and spec.scaling is not scaling:
            raise ValueError(f"the spec of {name} must have {scaling}, not {spec.scaling}")


@dataclass(frozen=True)
class TensorWriter:
    """Encodes the tensors of one message."""

    codec: Codec
    observe: CodecObserver | None
    chain: Chain | None = None

    def lossy(self, array: Array, scaling: Scaling) -> pb.Tensor:
        """Encode latents or a prediction, with the codec of the session."""
        return encode_tensor(array, codec=self.codec, scaling=scaling, observe=self.observe)

    def streamed(self, array: Array, scaling: Scaling) -> pb.Tensor:
        """Encode latents or a prediction of a step, which follow those of an earlier step."""
        link = None if self.chain is None else Link(chain=self.chain, kind=scaling.name)
        return encode_tensor(array, codec=self.codec, scaling=scaling, link=link, observe=self.observe)

    def exact(self, array: Array, scaling: Scaling) -> pb.Tensor:
        """Encode what must arrive bit for bit."""
        codec = self.codec if self.codec in LOSSLESS_CODECS else Codec.RAW
        return encode_tensor(array, codec=codec, scaling=scaling, observe=self.observe)


@dataclass(frozen=True)
class TensorReader:
    """Decodes the tensors of one message."""

    specs: ClientSpecs | ServerSpecs
    observe: CodecObserver | None
    chain: Chain | None = None

    def latents(self, message: pb.Tensor, name: str) -> Array:
        """Decode latents."""
        return self._decode(message, self.specs.latents, name)

    @property
    def pixels_shape(self) -> tuple[int, ...] | None:
        """Of the pictures that are welcome."""
        return self.specs.pixels_shape if isinstance(self.specs, ServerSpecs) else None

    def streamed_latents(self, message: pb.Tensor, name: str) -> Array:
        """Decode latents of a step, which follow those of an earlier step."""
        return self._decode(message, self.specs.latents, name, Scaling.SCHEDULER)

    def streamed_prediction(self, message: pb.Tensor) -> Array:
        """Decode a prediction of a step, likewise."""
        return self._decode(message, self.specs.prediction, "prediction", Scaling.PREDICTION)

    def history(self, message: pb.Tensor, name: str) -> Array:
        """Decode a part of a solver's history: as latents, but float32, which schedulers compute in."""
        spec = self.specs.latents
        return self._decode(message, spec and replace(spec, dtypes=frozenset({DType.FLOAT32})), name)

    def noise(self, message: pb.Tensor) -> Array:
        """Decode start noise."""
        return self._decode(message, self.specs.noise, "noise")

    def prediction(self, message: pb.Tensor) -> Array:
        """Decode a prediction."""
        return self._decode(message, self.specs.prediction, "prediction")

    def embeds(self, message: pb.Tensor, name: str) -> Array:
        """Decode embeddings."""
        return self._decode(message, self.specs.pooled_embeds if "pooled" in name else self.specs.embeds, name)

    def _decode(self, message: pb.Tensor, spec: TensorSpec | None, name: str, follows: Scaling | None = None) -> Array:
        if spec is None:
            raise InvalidTensor(f"{name}: no such tensor is welcome here")
        link = None if self.chain is None or follows is None else Link(chain=self.chain, kind=follows.name)
        return decode_tensor(message, spec, name=name, link=link, observe=self.observe)


_SEQUENCES = frozenset({"prompt_embeds", "negative_prompt_embeds"})
_POOLED = frozenset({"pooled_prompt_embeds", "negative_pooled_prompt_embeds"})
_WHOLE_PROMPTS = (
    {"prompt_embeds"},
    _SEQUENCES,
    {"prompt_embeds", "pooled_prompt_embeds"},
    _SEQUENCES | _POOLED,
)


def encode_embeds(embeds: PromptEmbeds, writer: TensorWriter) -> pb.PromptEmbeds:
    """Encode embeddings, always bit for bit."""
    return pb.PromptEmbeds(
        **{name: writer.exact(array, Scaling.EMBEDDING) for name, array in vars(embeds).items() if array is not None}
    )


def decode_embeds(message: pb.PromptEmbeds, reader: TensorReader) -> PromptEmbeds:
    """Decode embeddings; each negative one must have the shape and dtype of its other."""
    given = {field.name for field, _ in message.ListFields()}
    checks.require("prompt_embeds" in given, "embeddings without prompt_embeds")
    checks.require(given in _WHOLE_PROMPTS, f"{', '.join(sorted(given))} are not a whole prompt")
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        if f"negative_{name}" in given:
            _check_alike(getattr(message, name), getattr(message, f"negative_{name}"), name)
    return PromptEmbeds(**{name: reader.embeds(getattr(message, name), name) for name in sorted(given)})


def _check_alike(positive: pb.Tensor, negative: pb.Tensor, name: str) -> None:
    if positive.shape != negative.shape or positive.dtype != negative.dtype:
        raise InvalidTensor(f"{name} and negative_{name} must have the same shape and dtype")


def encode_state(state: State, writer: TensorWriter) -> pb.State:
    """Encode a state."""
    return pb.State(
        step_index=state.step_index,
        latents=writer.lossy(state.latents, Scaling.SCHEDULER),
        scheduler_state={key: writer.lossy(array, Scaling.SCHEDULER) for key, array in state.scheduler_state.items()},
    )


def decode_state(message: pb.State, reader: TensorReader) -> State:
    """Decode a state; its step index is the next to run, so the step count is legal here."""
    steps = reader.specs.num_inference_steps
    step_index = checks.count(message.step_index, "the state's step_index", high=steps)
    checks.require(message.HasField("latents"), "a state without latents")
    num_tensors = len(message.scheduler_state)
    checks.require(
        num_tensors <= MAX_STATE_TENSORS,
        f"scheduler_state holds {num_tensors} tensors, the cap is {MAX_STATE_TENSORS}",
    )
    for key in message.scheduler_state:
        checks.text(key, "a scheduler_state key", min_chars=1, max_chars=MAX_STATE_KEY_CHARS)
    return State(
        step_index=step_index,
        latents=reader.latents(message.latents, "latents"),
        scheduler_state={
            key: reader.history(tensor, f"scheduler_state {key}") for key, tensor in message.scheduler_state.items()
        },
    )


def decode_plan(message: pb.Plan) -> Plan:
    """Check and return a plan."""
    num_real_steps = len(message.real_steps)
    checks.require(num_real_steps <= checks.MAX_STEPS, f"the plan: {num_real_steps} real_steps are too many")
    try:
        return Plan(
            num_inference_steps=message.num_inference_steps,
            handoff_step=message.handoff_step,
            refresh=checks.text(message.refresh, "refresh", min_chars=1),
            warmup_steps=message.warmup_steps,
            skip_interval=message.skip_interval,
            predictor=checks.text(message.predictor, "predictor", min_chars=1),
            smoothing=message.smoothing,
            tolerance=message.tolerance,
            final_steps=message.final_steps,
            real_steps=tuple(message.real_steps),
            max_cloud_calls=message.max_cloud_calls if message.HasField("max_cloud_calls") else None,
        )
    except ValueError as error:
        raise InvalidRequest(f"the plan: {error}") from error


def encode_model(model: ModelDescription) -> pb.ModelDescription:
    """Encode a model description; the field names are the same on both sides."""
    return pb.ModelDescription(**vars(model))


def decode_model(message: pb.ModelDescription) -> ModelDescription:
    """Check and return a model description."""
    dim, name = checks.MAX_DIM, checks.text
    return ModelDescription(
        name=name(message.name, "the model's name"),
        fingerprint=name(message.fingerprint, "the model's fingerprint"),
        family=name(message.family, "the model's family"),
        prediction_type=name(message.prediction_type, "the model's prediction_type"),
        latent_channels=checks.count(message.latent_channels, "latent_channels", low=1, high=dim),
        layout=_layout(message.layout),
        vae_scale_factor=checks.count(message.vae_scale_factor, "vae_scale_factor", low=1, high=dim),
        vae_scaling_factor=checks.number(message.vae_scaling_factor, "vae_scaling_factor"),
        vae_shift_factor=checks.number(message.vae_shift_factor, "vae_shift_factor"),
        vae_fingerprint=name(message.vae_fingerprint, "the VAE's fingerprint"),
        text_encoder_fingerprint=name(message.text_encoder_fingerprint, "the text encoder's fingerprint"),
        scheduler_class=name(message.scheduler_class, "the model's scheduler_class"),
        scheduler_config=checks.json_object(message.scheduler_config, "the model's scheduler_config"),
        default_height=checks.count(message.default_height, "default_height", low=1, high=dim),
        default_width=checks.count(message.default_width, "default_width", low=1, high=dim),
        num_parameters=checks.count(message.num_parameters, "num_parameters"),
        dtype=name(message.dtype, "the model's dtype"),
        device=name(message.device, "the model's device"),
        default_num_frames=checks.count(message.default_num_frames, "default_num_frames", high=dim),
        vae_temporal_scale_factor=checks.count(
            message.vae_temporal_scale_factor, "vae_temporal_scale_factor", high=dim
        ),
        default_fps=checks.count(
            message.default_fps, "default_fps", low=1 if message.default_num_frames else 0, high=dim
        ),
        prompt_embeds_width=checks.count(message.prompt_embeds_width, "prompt_embeds_width", high=dim),
        pooled_prompt_embeds_width=checks.count(
            message.pooled_prompt_embeds_width, "pooled_prompt_embeds_width", high=dim
        ),
        guidance_distilled=message.guidance_distilled,
        default_guidance_scale=checks.number(message.default_guidance_scale, "default_guidance_scale", low=0, high=100),
    )


def _layout(given: str) -> str:
    checks.require(given in LAYOUTS, f"the model's layout {given[:20]!r} is not one of {', '.join(LAYOUTS)}")
    return given
