"""What an `Open` must pass before it gets a place, once its header is read: model, limits, plan, tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from cloud_service.request import Request
from cloud_service.warm_up import Served
from diffusion.predictors import COMPANIONS, Predictor, make_predictor
from diffusion.scheduler_config import scheduler_config_at, scheduler_for
from diffusion.schedulers import Stepper
from diffusion.tensors import from_array
from orchestrator.refresh import make_refresh
from protos import ecdiff_v1_pb2 as pb
from wire.codecs import CODECS, LOSSLESS_CODECS
from wire.convert import ClientSpecs, OpenHeader, decode_client
from wire.errors import InvalidRequest, LimitExceeded, UnknownModel
from wire.messages import Codec, DType, Limits, Open, PromptEmbeds, Scaling, State
from wire.tensors import CodecObserver, TensorSpec


def check_header(header: OpenHeader, served: Served, limits: Limits) -> None:
    """Check model and limits.

    Raises:
        UnknownModel: Another model than the one served here is asked for.
        LimitExceeded: It is above a published cap.
    """
    info = served.model.info
    if header.model not in ("", info.fingerprint):
        raise UnknownModel(f"model {header.model} is not served here; this is {info.name} ({info.fingerprint})")
    for what, value, cap in (
        ("num_inference_steps", header.num_inference_steps, limits.max_num_inference_steps),
        ("height", header.height or info.default_height, limits.max_height),
        ("width", header.width or info.default_width, limits.max_width),
        ("num_images", header.num_images, limits.max_num_images),
        ("num_frames", header.num_frames or info.default_num_frames, limits.max_num_frames),
        ("the prompt's length", header.prompt_chars, limits.max_prompt_chars),
    ):
        if value > cap:
            raise LimitExceeded(f"{what} is {value}, the cap here is {cap}")


def check_open(
    message: pb.ClientMessage, header: OpenHeader, served: Served, limits: Limits, observe: CodecObserver
) -> tuple[Request, ClientSpecs]:
    """Check plan and tensors, and build what the engine needs.

    Returns:
        The request, and what later messages of this session may carry.

    Raises:
        InvalidRequest: Size, scheduler, plan or conditioning cannot be served as they stand.
        InvalidTensor: A tensor is not what this model takes.
        CorruptTensor: A tensor's bytes are damaged.
    """
    try:
        latents_shape = served.model.latents_shape(header.height, header.width, header.num_images, header.num_frames)
        stepper = _make_stepper(header, served, latents_shape, noise_seed=message.open.start.seed)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    if not served.has_room_for(latents_shape):
        raise LimitExceeded(
            f"latents of {' x '.join(map(str, latents_shape))} take more memory than is free here: "
            "ask for fewer or smaller pictures"
        )
    if not header.codecs:
        raise InvalidRequest(f"none of the codecs that the client accepts is known here: {_names(CODECS)}")
    codec = header.codecs[0]
    specs = _client_specs(latents_shape, codec, header, served, limits)
    opening = cast(Open, decode_client(message, specs=specs, observe=observe))
    try:
        return _make_request(opening, latents_shape, codec, stepper, served), specs
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _make_stepper(header: OpenHeader, served: Served, latents_shape: tuple[int, ...], *, noise_seed: int) -> Stepper:
    info = served.model.info
    config = scheduler_config_at(info.scheduler_config, latents_shape)
    class_name, own_config = scheduler_for(
        header.scheduler, config, own_class=info.scheduler_class, noise_seed=noise_seed
    )
    return Stepper(class_name, own_config, header.num_inference_steps, served.model.device)


def _client_specs(
    latents_shape: tuple[int, ...], codec: Codec, header: OpenHeader, served: Served, limits: Limits
) -> ClientSpecs:
    dtypes, max_bytes = frozenset(DType), limits.max_tensor_bytes

    def spec(shape: tuple[int, ...], codecs: frozenset[Codec], scaling: Scaling) -> TensorSpec:
        return TensorSpec(
            shape=shape, rank=len(shape), dtypes=dtypes, codecs=codecs, scaling=scaling, max_bytes=max_bytes
        )

    return ClientSpecs(
        latents=spec(latents_shape, LOSSLESS_CODECS | {codec}, Scaling.SCHEDULER),
        noise=spec(latents_shape, LOSSLESS_CODECS, Scaling.UNIT_NOISE),
        embeds=spec(served.embeds_shape, LOSSLESS_CODECS, Scaling.EMBEDDING),
        pooled_embeds=(
            None
            if served.pooled_embeds_shape is None
            else spec(served.pooled_embeds_shape, LOSSLESS_CODECS, Scaling.EMBEDDING)
        ),
        num_inference_steps=header.num_inference_steps,
    )


def _make_request(
    opening: Open, latents_shape: tuple[int, ...], codec: Codec, stepper: Stepper, served: Served
) -> Request:
    """Return the request.

    Raises:
        ValueError: The plan, the start or the conditioning contradicts the rest.
    """
    plan, start, given = opening.plan, opening.start, opening.conditioning
    start_step = 0
    if isinstance(start, State):
        start_step = start.step_index
        if start_step > plan.handoff_step:
            raise ValueError(f"a start at step {start_step} lies behind the handoff step {plan.handoff_step}")
        history = {name: from_array(array) for name, array in start.scheduler_state.items()}
        stepper.load_state(history, step_index=start_step)
    refresh = make_refresh(plan, start_step=start_step)

    def predictor(name: str) -> Predictor:
        return make_predictor(name, stepper.schedule, prediction_type=stepper.prediction_type, smoothing=plan.smoothing)

    guided = opening.guidance_scale > 1.0 and not served.model.info.guidance_distilled
    if isinstance(given, PromptEmbeds):
        if guided and given.negative_prompt_embeds is None:
            raise ValueError(f"guidance_scale {opening.guidance_scale} needs negative_prompt_embeds")
        if served.pooled_embeds_shape is not None and given.pooled_prompt_embeds is None:
            raise ValueError("this model needs pooled_prompt_embeds, too")
    return Request(
        open=opening,
        latents_shape=latents_shape,
        codec=codec,
        stepper=stepper,
        start_step=start_step,
        refresh=refresh,
        predictor=predictor(plan.predictor),
        companion=predictor(COMPANIONS[plan.predictor]) if refresh.measure == "embedded-error" else None,
        guided=guided,
    )


def _names(codecs: Iterable[Codec]) -> str:
    return ", ".join(codec.label for codec in codecs)
