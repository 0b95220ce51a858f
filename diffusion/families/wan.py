"""Wan 2.1: a flow-matching video transformer on UMT5's embeddings."""

from __future__ import annotations

import functools
import html
import re
from typing import Any

from torch import Tensor

from diffusion.families.base import Embeds, Rows
from diffusion.families.video import VideoModel
from diffusion.text_encoders import UMT5
from diffusion.vae import WAN_CLASSES

_UMT5_TOKENS = 512


class Wan(VideoModel):
    """The family of `WanPipeline`: text to video, one transformer."""

    family = "wan"
    network_class = "WanTransformer3DModel"
    text_encoder_classes = (UMT5,)
    vae_classes = WAN_CLASSES
    layout = "BCFHW"
    default_prediction_type = "flow_prediction"
    default_guidance_scale = 5.0
    # As `WanPipeline` does when it is told nothing: the transformer's configuration names no size.
    default_size = (480, 832)
    default_num_frames = 81
    default_fps = 16

    def check(self) -> None:
        """Raise `ValueError` for a transformer that does not fit VAE and text encoder, or a folder with two of them."""
        path, config = self.folder.path, self._config
        if self.folder.names("transformer_2") or self.folder.options.get("expand_timesteps"):
            raise ValueError(f"{path}: Wan 2.2 with two transformers or expanded timesteps is not supported, 2.1 is")
        if config.get("image_dim") is not None:
            raise ValueError(f"{path}: the transformer wants a picture (image_dim), and only text is supported")
        wanted = [("in_channels", self.vae.latent_channels, "channels of the VAE's latents:")]
        wanted += [("text_dim", each.config["d_model"], "size of UMT5's embeddings:") for each in self.text_encoders]
        for key, given, what in wanted:
            if config.get(key) != given:
                raise ValueError(f"{path}: the transformer's {key} is {config.get(key)}, {what} {given}")

    @property
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes; none are pooled."""
        return int(self._config["text_dim"]), 0

    @property
    def patch_side(self) -> int:
        """Latent pixels of a token, each way."""
        return int(self._config["patch_size"][-1])

    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt: UMT5's last hidden state, zeros after the prompt's end."""
        text = _clean(prompt)
        sequence = self.text_encoders[0](text, max_length=_UMT5_TOKENS)[0].to(self.dtype)
        sequence[:, self.text_encoders[0].num_tokens(text, max_length=_UMT5_TOKENS) :] = 0
        return Embeds(sequence=sequence)

    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Ask the transformer."""
        prediction: Tensor = network(
            hidden_states=rows.latents,
            timestep=rows.timesteps,
            encoder_hidden_states=rows.prompt_embeds,
            return_dict=False,
        )[0]
        return prediction

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return self.folder.config("transformer")


def _clean(prompt: str) -> str:
    """Return a prompt as the pipeline reads it, but for the repair of broken encodings, which is optional there."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
