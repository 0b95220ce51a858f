"""Stable Diffusion 1.x and 2.x, and every model in their layout: CLIP text encoder, conditional UNet, VAE."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion.families.base import Embeds, Rows
from diffusion.families.unet import UnetModel, check_unet
from diffusion.text_encoders import CLIP

# What a UNet may not want: inputs that this pipeline does not have.
_FOREIGN_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


class StableDiffusion(UnetModel):
    """The family of `StableDiffusionPipeline`."""

    family = "sd"
    text_encoder_classes = (CLIP,)

    def check(self) -> None:
        """Raise `ValueError` for a UNet that does not fit VAE and text encoder, or wants more than a prompt."""
        given = [each.config.get("hidden_size", 512) for each in self.text_encoders]
        check_unet(self.folder, self.vae, embed_dim=sum(given), foreign_inputs=_FOREIGN_INPUTS)

    @property
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes; none are pooled."""
        return self.folder.config("unet").get("cross_attention_dim", 1280), 0

    def scheduler_config(self) -> dict[str, Any]:
        """Return the scheduler's configuration; `StableDiffusionPipeline` corrects these two keys of old folders."""
        return super().scheduler_config() | {"steps_offset": 1, "clip_sample": False}

    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt: CLIP's last hidden state."""
        return Embeds(sequence=self.text_encoders[0](prompt)[0].to(self.dtype))

    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Ask the UNet."""
        prediction: Tensor = network(
            rows.latents, rows.timesteps, encoder_hidden_states=rows.prompt_embeds, return_dict=False
        )[0]
        return prediction
