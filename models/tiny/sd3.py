"""A tiny Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

from models.tiny.parts import clip, picture_vae, t5
from models.tiny.tokenizers import clip_tokenizer, t5_tokenizer


def pipeline(*, num_layers: int) -> Any:
    """Return a `StableDiffusion3Pipeline`; `num_layers` of its transformer tell a large model from a small one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=num_layers,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=picture_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )
