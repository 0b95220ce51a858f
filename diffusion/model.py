from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.compiled import OnSize


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the other end needs to know of a model.

    Attributes:
        name: Folder name or hub id.
        fingerprint: Hex digest of the denoising network's configuration and weights.
        family: Models of one family denoise the same kind of latents.
        prediction_type: epsilon, v_prediction or sample.
        latent_channels: C of the latents.
        layout: Order of the latents' axes: `BCHW`.
        vae_scale_factor: Picture pixels per latent pixel, each way.
        vae_scaling_factor: Scheduler latents = (VAE latents - shift) * scaling factor.
        vae_shift_factor: See `vae_scaling_factor`.
        vae_fingerprint: Hex digest of the VAE's configuration and weights.
        text_encoder_fingerprint: Hex digest of text encoder and tokenizer.
        scheduler_class: Class of the model's own scheduler.
        scheduler_config: Its configuration as canonical JSON; feed it to `scheduler_for`.
        default_height: Picture pixels.
        default_width: Picture pixels.
        num_parameters: Of the denoising network.
        dtype: float32, float16 or bfloat16.
        device: cpu or cuda.
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


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """An encoded prompt, on the model's device and in its dtype.

    Attributes:
        prompt_embeds: `[1, L, D]`.
        negative_prompt_embeds: `[1, L, D]`; None without guidance.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One step's question to the network.

    Attributes:
        latents: Model input, `[B, C, H, W]`.
        timestep: What the network is fed as time.
        conditioning: The prompt; one for all pictures of the batch.
        guidance_scale: Above 1 the negative prompt is evaluated too (two rows a picture), else not.
        guidance_rescale: Share of the rescaled prediction, 0..1 (arXiv 2305.08891).
    """

    latents: Tensor
    timestep: float
    conditioning: Conditioning
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.guided and self.conditioning.negative_prompt_embeds is None:
            raise ValueError(f"guidance_scale {self.guidance_scale} needs negative_prompt_embeds")

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is evaluated too."""
        return self.guidance_scale > 1.0


class Model(Protocol):
    """A text-to-picture diffusion model; every tensor it returns is free of autograd."""

    @property
    def info(self) -> ModelInfo:
        """What the other end needs to know."""

    @property
    def device(self) -> torch.device:
        """Where the network runs."""

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in, and the loop's dtype."""

    def encode_prompt(self, prompt: str, negative_prompt: str = "", *, guided: bool) -> Conditioning:
        """Encode a prompt; the negative one only when `guided`."""

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """Ask the network in one forward pass.

        Args:
            evaluations: Latents and embeddings of equal shapes but for the batch size; steps may differ.

        Returns:
            For each evaluation the guided prediction `[B, C, H, W]`, float32, of `info.prediction_type`.
        """

    def compile(self, sizes: Sequence[int], *, on_size: OnSize) -> None:
        """Compile the network for pictures of the default size; for the thread that will evaluate.

        Later evaluations never compile: a batch is padded to the next size, and what has no size runs as before.

        Args:
            sizes: Of the batches, in rows: two a guided picture, one an unguided one.
            on_size: Told of each batch size when it is done.

        Raises:
            ValueError: It cannot be compiled here; the text says why.
            torch.OutOfMemoryError: The device has no room for it.
        """

    def decode(self, latents: Tensor) -> NDArray[Any]:
        """Turn clean latents `[B, C, H, W]` (scheduler scaling) into pictures `[B, H, W, 3]`, uint8 RGB."""

    def latents_shape(self, height: int, width: int, num_images: int) -> tuple[int, int, int, int]:
        """Return `[B, C, H, W]` for pictures of `height` x `width` pixels; 0 is the model's default.

        Raises:
            ValueError: If the size is not a multiple of `info.vae_scale_factor`, or not positive.
        """
