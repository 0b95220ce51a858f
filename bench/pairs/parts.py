"""Parts of the published models, as their configuration files say; keys that are the class's defaults are left out."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

# ------------------------------------------------------------------------------ text encoders

CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_H: Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_BIG_G: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: Config = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
UMT5_XXL: Config = {**T5_XXL, "vocab_size": 256384}

# ------------------------------------------------------------------------------ VAEs

_PICTURE_VAE: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_16_CHANNELS: Config = {
    **_PICTURE_VAE,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
SD_VAE: Config = {**_PICTURE_VAE, "latent_channels": 4, "sample_size": 512, "scaling_factor": 0.18215}
SDXL_VAE: Config = {**SD_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
SD3_VAE: Config = {**_16_CHANNELS, "scaling_factor": 1.5305, "shift_factor": 0.0609}
FLUX_VAE: Config = {**_16_CHANNELS, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_COGVIDEOX_VAE: Config = {
    "latent_channels": 16,
    "block_out_channels": [128, 256, 256, 512],
    "temporal_compression_ratio": 4,
    "sample_height": 480,
    "sample_width": 720,
}
COGVIDEOX_2B_VAE: Config = {**_COGVIDEOX_VAE, "scaling_factor": 1.15258426}
COGVIDEOX_5B_VAE: Config = {**_COGVIDEOX_VAE, "scaling_factor": 0.7}
WAN_VAE: Config = {"base_dim": 96, "z_dim": 16}

# ------------------------------------------------------------------------------ schedulers

_BETAS: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PNDM: Config = {"_class_name": "PNDMScheduler", **_BETAS, "skip_prk_steps": True, "steps_offset": 1}
EULER: Config = {"_class_name": "EulerDiscreteScheduler", **_BETAS, "steps_offset": 1, "timestep_spacing": "leading"}
_COGVIDEOX: Config = {
    **_BETAS,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
COGVIDEOX_2B_DDIM: Config = {"_class_name": "CogVideoXDDIMScheduler", **_COGVIDEOX, "snr_shift_scale": 3.0}
COGVIDEOX_5B_DPM: Config = {"_class_name": "CogVideoXDPMScheduler", **_COGVIDEOX, "snr_shift_scale": 1.0}
_FLOW = "FlowMatchEulerDiscreteScheduler"
SD3_FLOW: Config = {"_class_name": _FLOW, "shift": 3.0}
DEV_FLOW: Config = {
    "_class_name": _FLOW,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
SCHNELL_FLOW: Config = {**DEV_FLOW, "shift": 1.0, "use_dynamic_shifting": False}
WAN_UNIPC: Config = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}

# ------------------------------------------------------------------------------ networks

_HALF_SIZE_UNET: Config = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": None,
    "layers_per_block": 1,
}
SD_1_UNET: Config = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD_2_UNET: Config = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
BK_SDM_TINY_UNET: Config = {**_HALF_SIZE_UNET, "cross_attention_dim": 768, "attention_head_dim": 8}
BK_SDM_V2_TINY_UNET: Config = {**_HALF_SIZE_UNET, **SD_2_UNET, "attention_head_dim": [5, 10, 20]}
_XL_UNET: Config = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SDXL_UNET: Config = {**_XL_UNET, "transformer_layers_per_block": [1, 2, 10]}
SSD_1B_UNET: Config = {
    **_XL_UNET,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
VEGA_UNET: Config = {
    **_XL_UNET,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
}
COGVIDEOX_2B: Config = {
    "num_attention_heads": 30,
    "num_layers": 30,
    "in_channels": 16,
    "patch_size": 2,
    "text_embed_dim": 4096,
}
COGVIDEOX_5B: Config = {
    **COGVIDEOX_2B,
    "num_attention_heads": 48,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
_SD3: Config = {"sample_size": 128, "in_channels": 16, "patch_size": 2, "joint_attention_dim": 4096}
SD35_LARGE: Config = {
    **_SD3,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
SD35_MEDIUM: Config = {
    **_SD3,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": list(range(13)),
}
_FLUX: Config = {"in_channels": 64, "num_single_layers": 38, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
FLUX_DEV: Config = {**_FLUX, "num_layers": 19, "guidance_embeds": True}
FLUX_SCHNELL: Config = {**_FLUX, "num_layers": 19, "guidance_embeds": False}
FLUX_LITE: Config = {**_FLUX, "num_layers": 8, "guidance_embeds": True}
_WAN: Config = {
    "patch_size": [1, 2, 2],
    "in_channels": 16,
    "text_dim": 4096,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
WAN_1_3B: Config = {**_WAN, "num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}
WAN_14B: Config = {**_WAN, "num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}
