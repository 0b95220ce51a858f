"""VAEs: latents into pixels, and back. Loaded when first used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion.locating import locate_vae
from diffusion.offload import Offload
from diffusion.pipeline_folder import ModelFolder, PipelineFolder
from diffusion.vae_choice import VaeChoice

TINY_CLASSES = ("AutoencoderTiny",)
PICTURE_CLASSES = ("AutoencoderKL", *TINY_CLASSES)
COGVIDEOX_CLASSES = ("AutoencoderKLCogVideoX",)
WAN_CLASSES = ("AutoencoderKLWan",)
# Where the configuration says none, by class; 1 for the others.
_SCALING_FACTORS = {"AutoencoderKL": 0.18215, "AutoencoderKLCogVideoX": 1.15258426}


class Vae:
    """A VAE: a part of a pipeline, or one that stands alone.

    Args:
        folder: Where it is.
        part: Its subfolder.
        class_name: Of diffusers.
        device: Where it runs.
        dtype: Of its weights, but for one that overflows in half precision.
        choice: How it decodes.

    Raises:
        ValueError: If its configuration is missing.
    """

    def __init__(
        self,
        folder: ModelFolder,
        part: str,
        class_name: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        choice: VaeChoice,
    ) -> None:
        self._folder, self._part, self._device, self._choice = folder, part, device, choice
        self.class_name = class_name
        self.config = folder.config(part)
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
        return self._folder.fingerprint(self._part, "diffusion_pytorch_model")

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

    def latents_of(self, pictures: Tensor) -> Tensor:
        """Encode pictures as their likeliest latents; of a VAE for videos, videos of one frame.

        Args:
            pictures: `[B, 3, H, W]`, -1..1, sides multiples of `scale_factor`.

        Returns:
            `[B, C, h, w]`, scheduler scaling, float32, on the CPU.
        """
        is_video = self.class_name not in PICTURE_CLASSES
        pixels = pictures.to(self._device, self.dtype)
        encoded = self.network.encode(pixels.unsqueeze(2) if is_video else pixels)
        latents: Tensor = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        if self.class_name in WAN_CLASSES:
            mean, std = (self._by_channel(key, latents) for key in ("latents_mean", "latents_std"))
            latents = (latents - mean) / std
        latents = (latents - self.shift_factor) * self.scaling_factor
        return (latents.squeeze(2) if is_video else latents).float().cpu()

    def _by_channel(self, key: str, latents: Tensor) -> Tensor:
        values = latents.new_tensor(getattr(self.network.config, key))
        return values.view(-1, *(1 for _ in latents.shape[2:]))

    @cached_property
    def network(self) -> Any:
        """The VAE itself."""
        import diffusers

        network = self._folder.load_part(self._part, getattr(diffusers, self.class_name), self.dtype, self._device)
        for wanted, option, enable in (
            (self._choice.tiling, "--vae-tiling", "enable_tiling"),
            (self._choice.slicing, "--vae-slicing", "enable_slicing"),
        ):
            if wanted:
                try:
                    getattr(network, enable)()
                except NotImplementedError as error:
                    raise ValueError(f"{self.class_name} cannot do that: leave {option} out") from error
        return network


def find_vae(
    folder: PipelineFolder, classes: tuple[str, ...], choice: VaeChoice, *, device: torch.device, dtype: torch.dtype
) -> tuple[Vae, Vae]:
    """Return a pipeline's own VAE, and the one that decodes: the same, unless another one is chosen.

    Args:
        folder: The pipeline. It may lack a VAE where another one is chosen, which then stands for its own.
        classes: What either may be, classes of diffusers.
        choice: What the user says.
        device: Where they run.
        dtype: Of their weights.

    Raises:
        ValueError: There is no such VAE, or the chosen one has other latents than the pipeline's.
        OSError: The chosen one is nowhere, and cannot be fetched.
    """
    if choice.path_or_id is None:
        class_name = folder.part_class("vae", classes)
        own = Vae(folder, "vae", class_name, device=device, dtype=dtype, choice=choice)
        return own, own
    chosen = _vae_alone(choice, classes, folder.offload, device=device, dtype=dtype)
    if folder.lacks("vae"):
        return chosen, chosen
    own = Vae(folder, "vae", folder.part_class("vae", classes), device=device, dtype=dtype, choice=choice)
    for what, wanted, has in (
        ("latent channels", own.latent_channels, chosen.latent_channels),
        ("picture pixels per latent pixel", own.scale_factor, chosen.scale_factor),
    ):
        if wanted != has:
            raise ValueError(f"--vae {choice.path_or_id} has {has} {what}, {folder.path} wants {wanted}")
    return own, chosen


def _vae_alone(
    choice: VaeChoice, classes: tuple[str, ...], offload: Offload, *, device: torch.device, dtype: torch.dtype
) -> Vae:
    assert choice.path_or_id is not None
    path = locate_vae(choice.path_or_id)
    if (path / "model_index.json").is_file():
        pipeline = PipelineFolder(path, offload)
        folder: ModelFolder = pipeline
        part, class_name = "vae", pipeline.part_class("vae", classes)
    else:
        folder, part = ModelFolder(path, offload), ""
        class_name = str(folder.config(part).get("_class_name"))
        if class_name not in classes:
            raise ValueError(f"--vae {path} is a {class_name}, supported: {', '.join(classes)}")
    return Vae(folder, part, class_name, device=device, dtype=dtype, choice=choice)


def to_pixels(pictures: Tensor) -> NDArray[Any]:
    """Turn pictures `[..., 3, H, W]`, -1..1, into uint8 RGB `[..., H, W, 3]`."""
    pixels = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[Any] = pixels.movedim(-3, -1).cpu().numpy()
    return array
