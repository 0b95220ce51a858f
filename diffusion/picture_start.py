"""Where a trajectory starts that is to keep something of a picture: at its latents, with noise."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from diffusion.model import StartsFromPicture
from diffusion.noise import draw_next_noise, seeded_generators
from diffusion.schedule import Schedule


@torch.inference_mode()
def noisy_picture(
    model: StartsFromPicture,
    picture: Image.Image,
    schedule: Schedule,
    start_step: int,
    *,
    size: tuple[int, int],
    num_images: int,
    seed: int,
    noise: Tensor | None = None,
) -> Tensor:
    """Return x at `start_step` of a picture, as diffusers' image-to-image pipelines do.

    Picture j of the batch is what a pipeline makes with a CPU generator of `seed + j`: it samples the VAE's
    distribution, then draws the noise.

    Args:
        model: Encodes it.
        picture: RGB, of any size.
        schedule: Of the whole trajectory.
        start_step: First step to run.
        size: Height and width in pixels.
        num_images: Copies, each with noise of its own.
        seed: Of the first one.
        noise: Standard normal, `[B, C, H, W]`, on the CPU; None: what the seed gives.

    Returns:
        `[B, C, H, W]`, scheduler scaling, float32, on the CPU.
    """
    generators = seeded_generators(seed, num_images)
    clean = model.encode_picture(picture, *size, generators).cpu()
    if noise is None:
        noise = draw_next_noise(clean.shape, generators)
    return schedule.alphas[start_step] * clean + schedule.sigmas[start_step] * noise
