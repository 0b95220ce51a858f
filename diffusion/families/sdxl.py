"""Stable Diffusion XL, and every model in its layout (SSD-1B): two CLIP encoders, pooled embeddings, time ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion.families.base import Embeds, Rows
from diffusion.families.unet import UnetModel, check_unet
from diffusion.text_encoders import CLIP, CLIP_PROJECTED

# What a UNet may not want: inputs that this pipeline does not have.
_FOREIGN_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
_NUM_TIME_IDS = 6


class StableDiffusionXL(UnetModel):
    """The family of `StableDiffusionXLPipeline`."""

    family = "sdxl"
    text_encoder_classes = (CLIP, CLIP_PROJECTED)
    default_guidance_scale = 5.0

    def check(self) -> None:
        """Raise `ValueError` for a UNet that does not fit VAE and text encoders, or wants more than a prompt."""
        given = [each.config.get("hidden_size", 512) for each in self.text_encoders]
        check_unet(self.folder, self.vae, embed_dim=sum(given), foreign_inputs=_FOREIGN_INPUTS)
        unet = self.folder.config("unet")
        if unet.get("addition_embed_type") != "text_time":
            raise ValueError(f"{self.folder.path}: the UNet takes no pooled embeddings and time ids; it is not SDXL's")
        pooled = [each.config.get("projection_dim", 512) for each in self.text_encoders[1:]]
        if pooled not in ([], [self.embeds_widths[1]]):
            raise ValueError(
                f"{self.folder.path}: the UNet wants pooled embeddings of size {self.embeds_widths[1]} beside its time "
                f"ids, not {pooled[0]}; "
                "refiners, which take another score, are not supported"
            )

    @property
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes, and P of the pooled ones."""
        unet = self.folder.config("unet")
        time_ids = _NUM_TIME_IDS * (unet.get("addition_time_embed_dim") or 0)
        return unet["cross_attention_dim"], (unet.get("projection_class_embeddings_input_dim") or 0) - time_ids

    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt: both encoders' last hidden state but one; the second's projection is the pooled one."""
        first, second = (encoder(prompt) for encoder in self.text_encoders)
        sequence = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Embeds(sequence=sequence.to(self.dtype), pooled=second[0].to(self.dtype))

    def encode_negative(self, prompt: str) -> Embeds:
        """Encode a negative prompt; none is all zeros where the pipeline says so."""
        embeds = self._encode(prompt)
        if prompt or not self.folder.options.get("force_zeros_for_empty_prompt", True) or embeds.pooled is None:
            return embeds
        return Embeds(sequence=torch.zeros_like(embeds.sequence), pooled=torch.zeros_like(embeds.pooled))

    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Ask the UNet for pictures of the latents' own size, uncropped (arXiv 2307.01952, section 2.2)."""
        height, width = (side * self.info.vae_scale_factor for side in rows.latents.shape[-2:])
        size = [float(height), float(width)]
        time_ids = rows.latents.new_tensor([*size, 0.0, 0.0, *size]).expand(len(rows.latents), -1)
        prediction: Tensor = network(
            rows.latents,
            rows.timesteps,
            encoder_hidden_states=rows.prompt_embeds,
            added_cond_kwargs={"text_embeds": rows.pooled_prompt_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return prediction
