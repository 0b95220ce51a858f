"""Real messages, arrays and specs that the tests of wire share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from wire.codecs import LOSSLESS_CODECS
from wire.convert import ClientSpecs, ServerSpecs, encode_client, encode_description, encode_server
from wire.messages import (
    Close,
    Codec,
    Correct,
    Correction,
    Credit,
    Decode,
    Decoded,
    Description,
    DType,
    Finished,
    HandedOff,
    HandOff,
    Heartbeat,
    Limits,
    Load,
    ModelDescription,
    Noise,
    Open,
    Opened,
    Ping,
    Plan,
    Pong,
    PromptEmbeds,
    PromptText,
    Scaling,
    Seed,
    Source,
    State,
    Step,
    Totals,
)
from wire.tensors import TensorSpec, encode_tensor, numpy_dtype

SHAPE = (1, 4, 8, 8)


def gaussian(dtype=DType.FLOAT32, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def spec(scaling=Scaling.SCHEDULER, **changes):
    values = {
        "shape": SHAPE,
        "dtypes": frozenset(DType),
        "codecs": frozenset(Codec),
        "scaling": scaling,
        "max_bytes": 4 * 256,
    }
    return TensorSpec(**{**values, **changes})


EMBEDS_SPEC = spec(Scaling.EMBEDDING, shape=(1, None, 16), rank=3, max_bytes=77 * 16 * 4, codecs=LOSSLESS_CODECS)
POOLED_EMBEDS_SPEC = spec(Scaling.EMBEDDING, shape=(1, 8), rank=2, max_bytes=8 * 4, codecs=LOSSLESS_CODECS)
TENSOR_SPECS = {
    "latents": spec(),
    "noise": spec(Scaling.UNIT_NOISE, codecs=LOSSLESS_CODECS),
    "embeds": EMBEDS_SPEC,
    "pooled_embeds": POOLED_EMBEDS_SPEC,
    "prediction": spec(Scaling.PREDICTION),
}
CLIENT_SPECS = ClientSpecs(**TENSOR_SPECS)
SERVER_SPECS = ServerSpecs(pixels_shape=(2, 16, 8, 3), **TENSOR_SPECS)

PLAN = Plan(
    num_inference_steps=50,
    handoff_step=37,
    refresh="fixed",
    warmup_steps=7,
    skip_interval=2,
    predictor="ecdiff",
    smoothing=0.5,
    tolerance=0.25,
    final_steps=2,
    real_steps=(0, 1, 49),
    max_cloud_calls=0,
)
MODEL = ModelDescription(
    name="icons-large",
    fingerprint="00ff",
    family="sd",
    prediction_type="epsilon",
    latent_channels=4,
    layout="BCHW",
    vae_scale_factor=8,
    vae_scaling_factor=0.18215,
    vae_shift_factor=0.0,
    vae_fingerprint="aa",
    text_encoder_fingerprint="bb",
    scheduler_class="DDIMScheduler",
    scheduler_config='{"beta_start": 0.00085, "lambda_min_clipped": -Infinity}',
    default_height=64,
    default_width=64,
    num_parameters=3_000_000_000_000,
    dtype="float32",
    device="cpu",
    default_num_frames=9,
    vae_temporal_scale_factor=4,
    default_fps=8,
    prompt_embeds_width=2048,
    pooled_prompt_embeds_width=1280,
    guidance_distilled=True,
    default_guidance_scale=3.5,
)
DESCRIPTION = Description(
    model=MODEL,
    limits=Limits(),
    load=Load(sessions=2, queue=1, step_seconds=0.25),
    schedulers=("ddim",),
    predictors=("reuse", "ecdiff", "linear"),
    codecs=tuple(Codec),
    version="0.1.0",
)
EMBEDS = PromptEmbeds(
    prompt_embeds=gaussian(shape=(1, 5, 16), seed=1),
    negative_prompt_embeds=gaussian(shape=(1, 5, 16), seed=2),
    pooled_prompt_embeds=gaussian(shape=(1, 8), seed=3),
    negative_pooled_prompt_embeds=gaussian(shape=(1, 8), seed=4),
)
STATE = State(step_index=37, latents=gaussian(), scheduler_state={"model_outputs_0": gaussian(seed=3)})
OPEN = Open(
    request_id="0b5e-42",
    conditioning=PromptText(prompt="a red apple,\nfluent", negative_prompt="blurry"),
    start=Seed(seed=2**64 - 3),
    plan=PLAN,
    model="00ff",
    guidance_scale=5.0,
    guidance_rescale=0.7,
    height=64,
    width=128,
    num_images=3,
    num_frames=9,
    stream_latents=False,
    stream_predictions=True,
    want_prompt_embeds=True,
    codecs=(Codec.INT8_BLOCK, Codec.RAW),
    credit=0,
    deadline_seconds=1.5,
)
CLIENT_MESSAGES = (
    OPEN,
    dataclasses.replace(OPEN, conditioning=EMBEDS, start=Noise(noise=gaussian())),
    dataclasses.replace(OPEN, start=STATE),
    Credit(count=3),
    HandOff(),
    HandOff(step_index=37),
    Correct(step_index=49, latents=gaussian()),
    Decode(latents=gaussian()),
    Close(),
    Ping(t0=1700000000.25),
)

TOTALS = Totals(nfe_cloud=17, nfe_extrapolated=20, nfe_correction=1, compute_seconds=2.5, queue_seconds=0.25)
OPENED = Opened(
    session_id="s-1",
    model=MODEL,
    scheduler_class="DDIMScheduler",
    scheduler_config="{}",
    timesteps=(801.0, 401.0, 1.0),
    sigmas=(9.5, 1.5, 0.25, 0.0),
    latents_shape=SHAPE,
    latents_dtype=DType.FLOAT16,
    codec=Codec.ZSTD,
    prompt_embeds=EMBEDS,
    encode_prompt_seconds=0.5,
)
PIXELS = np.random.default_rng(9).integers(0, 256, (2, 16, 8, 3), dtype=np.uint8)
SERVER_MESSAGES = (
    OPENED,
    Step(step_index=0, source=Source.CLOUD),
    Step(
        step_index=36,
        source=Source.EXTRAPOLATED,
        extrapolation_error=0.01,
        compute_seconds=0.25,
        queue_seconds=0.5,
        wait_seconds=0.0625,
        latents=gaussian(),
        latents_before=gaussian(seed=4),
        prediction=gaussian(seed=5),
    ),
    HandedOff(state=STATE, totals=TOTALS, wait_seconds=0.125),
    Correction(step_index=40, prediction=gaussian(), compute_seconds=1.0, queue_seconds=2.0),
    Finished(state=State(step_index=50, latents=gaussian()), totals=TOTALS),
    Heartbeat(queue_position=3, step_index=50),
    Pong(t0=1.0, t1=2.0, t2=3.0),
    Decoded(pixels=PIXELS, compute_seconds=1.0, queue_seconds=0.5),
)


def plain(message: Any) -> Any:
    """Return nested dictionaries in which arrays are comparable, bit for bit."""
    if isinstance(message, np.ndarray):
        return message.dtype, message.shape, message.tobytes()
    if dataclasses.is_dataclass(message):
        fields = {field.name: plain(getattr(message, field.name)) for field in dataclasses.fields(message)}
        return type(message), fields
    if isinstance(message, Mapping):
        return {key: plain(value) for key, value in message.items()}
    return message


# The same as bytes, in every codec: what the fuzz tests damage.
CLIENT_BYTES = [
    encode_client(message, codec=codec).SerializeToString() for message in CLIENT_MESSAGES for codec in Codec
]
SERVER_BYTES = [
    encode_server(message, codec=codec).SerializeToString() for message in SERVER_MESSAGES for codec in Codec
]
DESCRIPTION_BYTES = [encode_description(DESCRIPTION).SerializeToString()]
TENSORS = [encode_tensor(gaussian(dtype), codec=codec, scaling=Scaling.SCHEDULER) for dtype in DType for codec in Codec]
