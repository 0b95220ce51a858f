"""A pipeline folder's VAE: latents into pixels. Loaded when first used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion.pipeline_folder import PipelineFolder

PICTURE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
COGVIDEOX_CLASSES = ("AutoencoderKLCogVideoX",)
WAN_CLASSES = ("AutoencoderKLWan",)
# Where the configuration says none, by class; 1 for the others.
_SCALING_FACTORS = {"AutoencoderKL": 0.18215, "AutoencoderKLCogVideoX": 1.15258426}


class Vae:
    """The VAE of a pipeline folder. Its class is checked now.

    Args:
        folder: The pipeline.
        classes: What it may be, classes of diffusers.
        device: Where it runs.
        dtype: Of its weights, but for one that overflows in half precision.

    Raises:
        ValueError: If the folder has no such VAE.
    """

    def __init__(
        self, folder: PipelineFolder, classes: tuple[str, ...], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._folder, self._device = folder, device
        self.class_name = folder.part_class("vae", classes)
        self.config = folder.config("vae")
        # A VAE with force_upcast overflows in half precision. CogVideoX's says so too, yet its pipeline decodes in half
        # precision, as everybody does who runs it; Wan's says nothing, and is published in float32.
        by_class = {"AutoencoderKL": self.config.get("force_upcast", True), **dict.fromkeys(WAN_CLASSES, True)}
        upcast = bool(by_class.get(self.class_name, False))
        self.dtype = torch.float32 if upcast else dtype

    @property
    def latent_channels(self) -> int:
        """C of its latents."""
        return int(self.config.get("latent_channels", self.config.get("z_dim", 4)))

    @property
    def scaling_factor(self) -> float:
        """Scheduler latents = (VAE latents - shift) * scaling factor."""
        return float(self.config.get("scaling_factor", _SCALING_FACTORS.get(self.class_name, 1.0)))

    @property
    def shift_factor(self) -> float:
        """See `scaling_factor`."""
        return float(self.config.get("shift_factor") or 0.0)

    @property
    def scale_factor(self) -> int:
        """Picture pixels per latent pixel, each way.

        Raises:
            ValueError: If the configuration does not say.
        """
        if self.class_name in WAN_CLASSES:
            return int(self.config.get("scale_factor_spatial", 8))
        # AutoencoderTiny names its blocks by side; both sides halve or double once between two blocks.
        blocks = self.config.get("block_out_channels") or self.config.get("decoder_block_out_channels")
        if not isinstance(blocks, list) or not blocks:
            raise ValueError(f"{self._folder.path}: the VAE's configuration has no block_out_channels")
        return int(2 ** (len(blocks) - 1))

    @property
    def temporal_scale_factor(self) -> int:
        """Frames per latent frame after the first, of a VAE for videos."""
        key = "scale_factor_temporal" if self.class_name in WAN_CLASSES else "temporal_compression_ratio"
        return int(self.config.get(key, 4))

    def fingerprint(self) -> str:
        """Return a hex digest of configuration and weights."""
        return self._folder.fingerprint("vae", "diffusion_pytorch_model")

    def decode(self, latents: Tensor) -> Tensor:
        """Decode clean latents of scheduler scaling, in the axes that the VAE takes; float32, -1..1."""
        latents = latents.to(self._device, self.dtype) / self.scaling_factor + self.shift_factor
        if self.class_name in WAN_CLASSES:
            # Its latents are scaled channel by channel.
            mean, std = (self._by_channel(key, latents) for key in ("latents_mean", "latents_std"))
            latents = latents * std + mean
        pixels: Tensor = self.network.decode(latents, return_dict=False)[0]
        return pixels.float()

    def encode(self, picture: Image.Image, height: int, width: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Encode a picture as diffusers' image-to-image pipelines do; for VAEs of pictures.

        Args:
            picture: RGB; scaled to the size, whatever its own shape (Lanczos).
            height: In pixels, a multiple of `scale_factor`.
            width: Likewise.
            generators: On the CPU, one for each copy: a VAE that says a distribution is sampled.

        Returns:
            `[len(generators), C, height / scale_factor, width / scale_factor]`, scheduler scaling, float32.
        """
        from diffusers.image_processor import VaeImageProcessor

        processor = VaeImageProcessor(vae_scale_factor=self.scale_factor)
        pixels = processor.preprocess(picture, height=height, width=width).to(self._device, self.dtype)
        encoded = self.network.encode(pixels)
        if "latents" in encoded:
            latents = encoded.latents.expand(len(generators), -1, -1, -1)
        else:
            latents = torch.cat([encoded.latent_dist.sample(generator) for generator in generators])
        scaled: Tensor = (latents - self.shift_factor) * self.scaling_factor
        return scaled.float()

    def _by_channel(self, key: str, latents: Tensor) -> Tensor:
        values = latents.new_tensor(getattr(self.network.config, key))
        return values.view(-1, *(1 for _ in latents.shape[2:]))

    @cached_property
    def network(self) -> Any:
        """The VAE itself."""
        import diffusers

        return self._folder.load_part("vae", getattr(diffusers, self.class_name), self.dtype, self._device)


def to_pixels(pictures: Tensor) -> NDArray[Any]:
    """Turn pictures `[..., 3, H, W]`, -1..1, into uint8 RGB `[..., H, W, 3]`."""
    pixels = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[Any] = pixels.movedim(-3, -1).cpu().numpy()
    return array
