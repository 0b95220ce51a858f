"""A tiny CogVideoX: 5B with rotary positions, 2B with fixed ones, 1.5 with pairs of frames for a token."""

from __future__ import annotations

from typing import Any

from models.tiny.parts import t5
from models.tiny.tokenizers import t5_tokenizer


def pipeline(*, num_layers: int, rotary: bool = True, patch_size_t: int | None = None) -> Any:
    """Return a `CogVideoXPipeline`; `num_layers` of its transformer tell a large model from a small one.

    Args:
        num_layers: Of the transformer.
        rotary: Whether its positions are rotary; the published 2B's are not, and its scheduler has another shift.
        patch_size_t: Latent frames of a token; None: 1.0's way to have one.
    """
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    return CogVideoXPipeline(
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=num_layers,
            text_embed_dim=32,
            time_embed_dim=16,
            sample_width=12 if patch_size_t is None else 16,
            sample_height=8 if patch_size_t is None else 16,
            sample_frames=9,
            patch_size=2,
            patch_size_t=patch_size_t,
            patch_bias=patch_size_t is None,
            use_rotary_positional_embeddings=rotary,
        ),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0 if rotary else 3.0,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 8),
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_height=64,
            sample_width=96,
            scaling_factor=0.7 if rotary else 1.15258426,
        ),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )
