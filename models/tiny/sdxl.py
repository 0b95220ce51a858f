"""A tiny Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

from models.tiny.parts import clip, picture_vae, unet
from models.tiny.tokenizers import clip_tokenizer

_TIME_WIDTH = 8


def pipeline(*, num_layers: int) -> Any:
    """Return a `StableDiffusionXLPipeline`; `num_layers` of each block tell a large model from a small one."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        unet=unet(
            num_layers=num_layers,
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=_TIME_WIDTH,
            projection_class_embeddings_input_dim=16 + 6 * _TIME_WIDTH,
        ),
        # The published model's own is Euler; here the one that the command line takes where nobody asks for another.
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        vae=picture_vae(latent_channels=4, scaling_factor=0.13025, shift_factor=None, quant_conv=True),
        text_encoder=clip(projected=False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=clip_tokenizer(),
        add_watermarker=False,
    )
