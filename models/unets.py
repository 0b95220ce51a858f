"""The two UNets and the scheduler that both follow."""

from diffusers import DDIMScheduler, UNet2DConditionModel

from models.autoencoder import LATENT_CHANNELS

TEXT_WIDTH = 128


def make_cloud_unet(*, latents_size: int = 8) -> UNet2DConditionModel:
    """Build the large model: two resolutions, text at the lower one and on the whole way up."""
    return UNet2DConditionModel(
        sample_size=latents_size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(128, 224),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,  # diffusers reads this as the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def make_edge_unet(*, latents_size: int = 8) -> UNet2DConditionModel:
    """Build the small model: the same shape, narrow, with text in the middle only."""
    return UNet2DConditionModel(
        sample_size=latents_size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Build the noise schedule of Stable Diffusion, read as v-prediction (Salimans and Ho 2022, appendix D)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
