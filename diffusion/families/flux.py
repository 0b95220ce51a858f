"""FLUX.1: a flow-matching transformer on packed latents, guidance-distilled; CLIP's pooled output and a T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion.families.base import Embeds, FamilyModel, Rows
from diffusion.families.flow import check_transformer
from diffusion.scheduler_config import PATCH_SIDE
from diffusion.text_encoders import CLIP, T5

# As `FluxPipeline` does when it is told nothing. Its transformer's configuration names no size.
_T5_TOKENS = 512
_DEFAULT_LATENT_SIDE = 128
_TRAINED_TIMESTEPS = 1000


class Flux(FamilyModel):
    """The family of `FluxPipeline`, dev and schnell."""

    family = "flux"
    network_class = "FluxTransformer2DModel"
    text_encoder_classes = (CLIP, T5)
    default_prediction_type = "flow_prediction"
    default_guidance_scale = 3.5

    def check(self) -> None:
        """Raise `ValueError` for a transformer that does not fit VAE and text encoders, or wants a picture."""
        wanted = {"in_channels": (PATCH_SIDE**2 * self.vae.latent_channels, "values of a patch of the VAE's latents:")}
        if self.text_encoders:
            clip, t5 = (each.config for each in self.text_encoders)
            wanted["pooled_projection_dim"] = (clip["hidden_size"], "size of CLIP's pooled output:")
            wanted["joint_attention_dim"] = (t5["d_model"], "size of T5's embeddings:")
        check_transformer(self.folder, wanted)

    def more_info(self) -> dict[str, Any]:
        """Say that there is no negative prompt: dev is fed the scale, schnell has none."""
        return {"guidance_distilled": True}

    def scheduler_config(self) -> dict[str, Any]:
        """Return the scheduler's configuration; the pipeline places the steps by hand: sigmas 1 ... 1 / steps."""
        return super().scheduler_config() | {"timestep_spacing": "trailing"}

    @property
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes, and P of the pooled ones."""
        config = self.folder.config("transformer")
        return config["joint_attention_dim"], config["pooled_projection_dim"]

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width of the pipeline, in picture pixels."""
        side = _DEFAULT_LATENT_SIDE * self.vae.scale_factor
        return side, side

    @property
    def size_multiple(self) -> int:
        """Pixels of a token, each way."""
        return PATCH_SIDE * self.info.vae_scale_factor

    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt: T5's last hidden state, and CLIP's pooled output."""
        clip, t5 = self.text_encoders
        return Embeds(
            sequence=t5(prompt, max_length=_T5_TOKENS)[0].to(self.dtype),
            pooled=clip(prompt).pooler_output.to(self.dtype),
        )

    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Ask the transformer, whose tokens are patches of the latents."""
        count, channels, height, width = rows.latents.shape
        down, across = height // PATCH_SIDE, width // PATCH_SIDE
        tokens = rows.latents.reshape(count, channels, down, PATCH_SIDE, across, PATCH_SIDE)
        tokens = tokens.permute(0, 2, 4, 1, 3, 5).reshape(count, down * across, channels * PATCH_SIDE**2)
        places = tokens.new_zeros(down, across, 3)
        places[..., 1] = rows.timesteps.new_tensor(range(down))[:, None]
        places[..., 2] = rows.timesteps.new_tensor(range(across))[None, :]
        answer: Tensor = network(
            hidden_states=tokens,
            timestep=(rows.timesteps.to(tokens.dtype) / _TRAINED_TIMESTEPS),
            guidance=rows.guidance_scales if network.config.guidance_embeds else None,
            pooled_projections=rows.pooled_prompt_embeds,
            encoder_hidden_states=rows.prompt_embeds,
            txt_ids=tokens.new_zeros(rows.prompt_embeds.shape[1], 3),
            img_ids=places.reshape(-1, 3),
            return_dict=False,
        )[0]
        answer = answer.reshape(count, down, across, channels, PATCH_SIDE, PATCH_SIDE)
        return answer.permute(0, 3, 1, 4, 2, 5).reshape(rows.latents.shape)
