"""Stable Diffusion 3 and 3.5: a flow-matching transformer on two projected CLIP encoders and an optional T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion.families.base import Embeds, FamilyModel, Rows
from diffusion.families.flow import check_transformer
from diffusion.scheduler_config import PATCH_SIDE
from diffusion.text_encoders import CLIP_PROJECTED, T5

# As `StableDiffusion3Pipeline` does when it is told nothing.
_T5_TOKENS = 256


class StableDiffusion3(FamilyModel):
    """The family of `StableDiffusion3Pipeline`."""

    family = "sd3"
    network_class = "SD3Transformer2DModel"
    text_encoder_classes = (CLIP_PROJECTED, CLIP_PROJECTED, T5)
    optional_text_encoders = ("text_encoder_3",)
    default_prediction_type = "flow_prediction"
    default_guidance_scale = 7.0

    def check(self) -> None:
        """Raise `ValueError` for a transformer that does not fit VAE and text encoders."""
        wanted = {"in_channels": (self.vae.latent_channels, "channels of the VAE's latents:")}
        if self.text_encoders:
            clip = sum(each.config.get("projection_dim", 512) for each in self.text_encoders[:2])
            wanted["pooled_projection_dim"] = (clip, "size of the text encoders' projections:")
        if len(self.text_encoders) > 2:
            wanted["joint_attention_dim"] = (self.text_encoders[2].config["d_model"], "size of T5's embeddings:")
        check_transformer(self.folder, wanted)

    @property
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes, and P of the pooled ones."""
        config = self.folder.config("transformer")
        return config["joint_attention_dim"], config["pooled_projection_dim"]

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width that the transformer was made for, in picture pixels."""
        side = self.folder.config("transformer").get("sample_size", 128) * self.vae.scale_factor
        return side, side

    @property
    def size_multiple(self) -> int:
        """Pixels of a token, each way."""
        return PATCH_SIDE * self.info.vae_scale_factor

    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt: both CLIPs side by side, filled up to T5's width, then T5 (arXiv 2403.03206, figure 2)."""
        first, second = (encoder(prompt) for encoder in self.text_encoders[:2])
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        width = self.folder.config("transformer")["joint_attention_dim"]
        if len(self.text_encoders) > 2:
            long = self.text_encoders[2](prompt, max_length=_T5_TOKENS)[0]
        else:
            long = clip.new_zeros(1, _T5_TOKENS, width)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return Embeds(
            sequence=torch.cat([clip.to(self.dtype), long.to(self.dtype)], dim=1),
            pooled=torch.cat([first[0], second[0]], dim=-1).to(self.dtype),
        )

    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Ask the transformer."""
        prediction: Tensor = network(
            hidden_states=rows.latents,
            timestep=rows.timesteps,
            encoder_hidden_states=rows.prompt_embeds,
            pooled_projections=rows.pooled_prompt_embeds,
            return_dict=False,
        )[0]
        return prediction
