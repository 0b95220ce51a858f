"""Parts that several families share, tiny and random."""

from __future__ import annotations

from typing import Any

from models.tiny.tokenizers import CLIP_LENGTH, CLIP_VOCABULARY, T5_VOCABULARY

_VAE_BLOCKS = 4


def clip(*, projected: bool, width: int = 16) -> Any:
    """Return a CLIP text encoder of `width`, whose projection is as wide."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=CLIP_VOCABULARY - 2,
        eos_token_id=CLIP_VOCABULARY - 1,
        pad_token_id=CLIP_VOCABULARY - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5(*, width: int = 32) -> Any:
    """Return a T5 encoder of `width`."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_t5_config(width)))


def umt5(*, width: int = 32) -> Any:
    """Return a UMT5 encoder of `width`."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**_t5_config(width)))


def _t5_config(width: int) -> dict[str, Any]:
    return {
        "vocab_size": T5_VOCABULARY,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
    }


def unet(*, num_layers: int, cross_attention_dim: int, **more: Any) -> Any:
    """Return a conditional UNet for latents of 4 channels, 16 x 16; `more` goes into its configuration."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=num_layers,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        **more,
    )


def picture_vae(
    *, latent_channels: int, scaling_factor: float, shift_factor: float | None, quant_conv: bool = False
) -> Any:
    """Return an `AutoencoderKL` that halves the sides three times."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * _VAE_BLOCKS,
        up_block_types=("UpDecoderBlock2D",) * _VAE_BLOCKS,
        block_out_channels=(4,) * _VAE_BLOCKS,
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=latent_channels,
        sample_size=128,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
    )
