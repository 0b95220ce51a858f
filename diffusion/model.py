from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion.compiled import OnSize


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the other end needs to know of a model.

    Attributes:
        name: Folder name or hub id.
        fingerprint: Hex digest of the denoising network's configuration and weights.
        family: Models of one family denoise the same kind of latents.
        prediction_type: epsilon, v_prediction, sample or flow_prediction.
        latent_channels: C of the latents.
        layout: Order of the latents' axes: `BCHW`; of videos `BFCHW` or `BCFHW`.
        vae_scale_factor: Picture pixels per latent pixel, each way.
        vae_scaling_factor: Scheduler latents = (VAE latents - shift) * scaling factor.
        vae_shift_factor: See `vae_scaling_factor`.
        vae_fingerprint: Hex digest of the VAE's configuration and weights.
        text_encoder_fingerprint: Hex digest of text encoder and tokenizer; empty where the folder has none.
        scheduler_class: Class of the model's own scheduler.
        scheduler_config: Its configuration as canonical JSON; feed it to `scheduler_for`.
        default_height: Picture pixels.
        default_width: Picture pixels.
        num_parameters: Of the denoising network.
        dtype: float32, float16 or bfloat16.
        device: cpu or cuda.
        default_num_frames: Of a video; 0 where the model makes pictures.
        vae_temporal_scale_factor: Frames per latent frame after the first; 0 where the model makes pictures.
        prompt_embeds_width: D of the embeddings that the network takes.
        pooled_prompt_embeds_width: P of the pooled ones; 0 where the family has none.
        default_fps: Frames a second of a video; 0 where the model makes pictures.
        guidance_distilled: Whether the network takes no negative prompt: guidance is fed to it as a number, if at all.
        default_guidance_scale: What the family's users start with.
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
class Conditioning:
    """An encoded prompt, on the model's device and in its dtype.

    Attributes:
        prompt_embeds: `[1, L, D]`.
        negative_prompt_embeds: `[1, L, D]`; None without classifier-free guidance.
        pooled_prompt_embeds: `[1, P]`; None where the family has none.
        negative_pooled_prompt_embeds: `[1, P]`; None without classifier-free guidance, too.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One step's question to the network.

    Attributes:
        latents: Model input, `[B, C, H, W]`, or as the model's layout says.
        timestep: What the network is fed as time.
        conditioning: The prompt; one for all pictures of the batch. With a negative prompt in it the evaluation is
            guided: two rows a picture.
        guidance_scale: Weight of the prompt against the negative one; a guidance-distilled network is fed it.
        guidance_rescale: Share of the rescaled prediction, 0..1 (arXiv 2305.08891).
    """

    latents: Tensor
    timestep: float
    conditioning: Conditioning
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is evaluated too."""
        return self.conditioning.negative_prompt_embeds is not None


class Model(Protocol):
    """A text-to-picture or text-to-video diffusion model; every tensor it returns is free of autograd."""

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
        """Encode a prompt; the negative one only when `guided` and the model takes one."""

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """Ask the network in one forward pass.

        Args:
            evaluations: Latents and embeddings of equal shapes but for the batch size; steps may differ.

        Returns:
            For each evaluation the guided prediction, of its latents' shape, float32, of `info.prediction_type`.
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
        """Turn clean latents (scheduler scaling) into uint8 RGB, `[B, H, W, 3]`; videos `[B, F, H, W, 3]`."""

    def latents_shape(self, height: int, width: int, num_images: int, num_frames: int = 0) -> tuple[int, ...]:
        """Return the latents' shape in the model's layout; 0 is the model's default.

        Args:
            height: Of the pictures, in pixels.
            width: Likewise.
            num_images: Pictures, or videos.
            num_frames: Of each video.

        Raises:
            ValueError: The VAE cannot make this size, or the model makes pictures and `num_frames` is given.
        """


@runtime_checkable
class StartsFromPicture(Protocol):
    """A model whose trajectories may start from a picture: one of `diffusion.families.FROM_PICTURES`."""

    def encode_picture(
        self, picture: Image.Image, height: int, width: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Return a picture's latents, one copy for each generator, `[B, C, H, W]`, scheduler scaling, float32.

        Args:
            picture: RGB; scaled to the size, whatever its own shape.
            height: In pixels.
            width: Likewise.
            generators: On the CPU, for a VAE that says a distribution.
        """
