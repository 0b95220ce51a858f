"""A tiny FLUX.1: dev, with guidance embedding and a shift by size."""

from __future__ import annotations

from typing import Any

from models.tiny.parts import clip, picture_vae, t5
from models.tiny.tokenizers import clip_tokenizer, t5_tokenizer


def pipeline(*, num_layers: int, guidance_embeds: bool = True) -> Any:
    """Return a `FluxPipeline`; `num_layers` of its transformer tell a large model from a small one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=num_layers,
            num_single_layers=num_layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        vae=picture_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(projected=False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )
