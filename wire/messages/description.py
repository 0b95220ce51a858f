"""What a service says of itself: the answer to `Describe`."""

from __future__ import annotations

from dataclasses import dataclass

from wire.messages.tensors import Codec

PROTOCOL_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model as the other end needs to know it.

    Fingerprints are hex digests of configuration and weights; `vae_scale_factor` is picture pixels
    per latent pixel, `vae_scaling_factor` and `vae_shift_factor` map VAE latents to scheduler latents.
    """

    name: str
    fingerprint: str
    family: str
    prediction_type: str
    latent_channels: int
    layout: str
    vae_scale_factor: int
    vae_scaling_factor: float
    vae_shift_factor: float
    vae_fingerprint: str
    text_encoder_fingerprint: str
    scheduler_class: str
    scheduler_config: str
    default_height: int
    default_width: int
    num_parameters: int
    dtype: str
    device: str
    default_num_frames: int = 0
    vae_temporal_scale_factor: int = 0
    default_fps: int = 0
    prompt_embeds_width: int = 0
    pooled_prompt_embeds_width: int = 0
    guidance_distilled: bool = False
    default_guidance_scale: float = 7.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The caps of a service; a request above one of them is refused with LimitExceeded."""

    max_num_inference_steps: int = 1000
    max_height: int = 2048
    max_width: int = 2048
    max_num_images: int = 8
    max_prompt_chars: int = 2000
    max_tensor_bytes: int = 64 * 2**20
    max_sessions: int = 16
    max_num_frames: int = 256


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy a service is; `step_seconds` is a moving average of one real evaluation, 0 before the first."""

    sessions: int = 0
    queue: int = 0
    step_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Description:
    """The answer to Describe."""

    model: ModelDescription
    limits: Limits
    load: Load
    schedulers: tuple[str, ...]
    predictors: tuple[str, ...]
    codecs: tuple[Codec, ...]
    version: str
    protocol_version: int = PROTOCOL_VERSION
