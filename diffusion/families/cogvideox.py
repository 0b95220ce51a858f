"""CogVideoX 1.0 and 1.5: a video transformer on T5's embeddings, v-prediction; positions learned or rotary."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from diffusion.families.base import Embeds, Rows
from diffusion.families.flow import check_transformer
from diffusion.families.video import VideoModel
from diffusion.text_encoders import T5
from diffusion.vae import COGVIDEOX_CLASSES


class CogVideoX(VideoModel):
    """The family of `CogVideoXPipeline`."""

    family = "cogvideox"
    network_class = "CogVideoXTransformer3DModel"
    text_encoder_classes = (T5,)
    vae_classes = COGVIDEOX_CLASSES
    layout = "BFCHW"
    default_guidance_scale = 6.0
    default_fps = 8

    def check(self) -> None:
        """Raise `ValueError` for a transformer that does not fit VAE and text encoder, or wants a picture."""
        wanted = {"in_channels": (self.vae.latent_channels, "channels of the VAE's latents:")}
        for each in self.text_encoders:
            wanted["text_embed_dim"] = (each.config["d_model"], "size of T5's embeddings:")
        check_transformer(self.folder, wanted)

    @property
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes; none are pooled."""
        return int(self._config["text_embed_dim"]), 0

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width that the transformer was made for, in picture pixels."""
        height, width = (
            self._config.get(f"sample_{side}", default) for side, default in (("height", 60), ("width", 90))
        )
        return height * self.vae.scale_factor, width * self.vae.scale_factor

    @property
    def default_num_frames(self) -> int:
        """Frames that the transformer was made for."""
        return int(self._config.get("sample_frames", 49))

    @property
    def frame_multiple(self) -> int:
        """Two latent frames: the VAE decodes pairs of them, and 1.5's transformer takes pairs."""
        return 2 * self.vae.temporal_scale_factor

    @property
    def patch_side(self) -> int:
        """Latent pixels of a token, each way."""
        return int(self._config.get("patch_size", 2))

    def latents_shape(self, height: int, width: int, num_images: int, num_frames: int = 0) -> tuple[int, ...]:
        """Return `[B, F, C, H, W]`; 0 is the model's default.

        Raises:
            ValueError: The VAE cannot make this size or so many frames, or 1.5's positions do not reach that far.
        """
        shape = super().latents_shape(height, width, num_images, num_frames)
        tallest, widest = self.default_size
        if self._num_extra_frames and (height > tallest or width > widest):
            raise ValueError(f"height and width must be at most {tallest} x {widest} for this model")
        return shape

    def num_latent_frames(self, num_frames: int) -> int:
        """Return how many latent frames a video has; 1.5 has one more than are decoded, for a whole number of pairs.

        Raises:
            ValueError: The VAE cannot make so many frames.
        """
        return super().num_latent_frames(num_frames) + self._num_extra_frames

    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt: T5's last hidden state."""
        length = self._config.get("max_text_seq_length", 226)
        return Embeds(sequence=self.text_encoders[0](prompt, max_length=length)[0].to(self.dtype))

    def decode(self, latents: Tensor) -> Any:
        """Turn clean latents (scheduler scaling) into videos `[B, F, H, W, 3]`, uint8 RGB."""
        return super().decode(latents[:, self._num_extra_frames :])

    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Ask the transformer."""
        prediction: Tensor = network(
            hidden_states=rows.latents,
            encoder_hidden_states=rows.prompt_embeds,
            timestep=rows.timesteps,
            image_rotary_emb=self._rotary_positions(rows.latents) if self._has_rotary_positions else None,
            return_dict=False,
        )[0]
        return prediction

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return self.folder.config("transformer")

    @property
    def _num_extra_frames(self) -> int:
        return 0 if self._config.get("patch_size_t") is None else 1

    @property
    def _has_rotary_positions(self) -> bool:
        return bool(self._config.get("use_rotary_positional_embeddings", False))

    def _rotary_positions(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the tokens' places, as the pipeline makes them for a size."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config = self._config
        frames, rows, columns = (
            latents.shape[1],
            latents.shape[3] // self.patch_side,
            latents.shape[4] // self.patch_side,
        )
        made_for = (config["sample_height"] // self.patch_side, config["sample_width"] // self.patch_side)
        if config.get("patch_size_t") is None:
            # The default size keeps the places it was trained on; others are scaled and centred into its grid.
            region = get_resize_crop_region_for_grid((rows, columns), made_for[1], made_for[0])
            kind: dict[str, Any] = {"crops_coords": region, "temporal_size": frames}
        else:
            pairs = -(-frames // config["patch_size_t"])
            kind = {"crops_coords": None, "temporal_size": pairs, "grid_type": "slice", "max_size": made_for}
        cosines, sines = get_3d_rotary_pos_embed(
            embed_dim=config["attention_head_dim"], grid_size=(rows, columns), device=latents.device, **kind
        )
        return cosines, sines
