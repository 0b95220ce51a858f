"""A tiny Wan 2.1."""

from __future__ import annotations

from typing import Any

from models.tiny.parts import umt5
from models.tiny.tokenizers import t5_tokenizer


def pipeline(*, num_layers: int) -> Any:
    """Return a `WanPipeline`; `num_layers` of its transformer tell a large model from a small one."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    return WanPipeline(
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=num_layers,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[2.0, 1.5, 2.5, 1.0],
        ),
        text_encoder=umt5(),
        tokenizer=t5_tokenizer(),
    )
