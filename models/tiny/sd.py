"""A tiny Stable Diffusion 1."""

from __future__ import annotations

from typing import Any

from models.tiny.parts import clip, picture_vae, unet
from models.tiny.tokenizers import clip_tokenizer


def pipeline(*, num_layers: int) -> Any:
    """Return a `StableDiffusionPipeline`; `num_layers` of each block tell a large model from a small one."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=unet(num_layers=num_layers, cross_attention_dim=16),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        vae=picture_vae(latent_channels=4, scaling_factor=0.18215, shift_factor=None, quant_conv=True),
        text_encoder=clip(projected=False),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
