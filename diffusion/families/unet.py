"""What the families with a conditional UNet share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from diffusion.families.base import FamilyModel
from diffusion.pipeline_folder import PipelineFolder
from diffusion.vae import Vae


class UnetModel(FamilyModel):
    """A family with a conditional UNet: it starts from a picture, too."""

    network_part = "unet"
    network_class = "UNet2DConditionModel"

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width that the UNet was made for, in picture pixels."""
        return unet_size(self.folder, self.vae)

    @torch.inference_mode()
    def encode_picture(
        self, picture: Image.Image, height: int, width: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Encode a picture to start from; see `StartsFromPicture`."""
        return self.vae.encode(picture, height, width, generators)


def check_unet(folder: PipelineFolder, vae: Vae, *, embed_dim: int, foreign_inputs: tuple[str, ...]) -> None:
    """Refuse a UNet that does not fit the other parts.

    Args:
        folder: The pipeline.
        vae: Its VAE.
        embed_dim: D of the text encoders' embeddings; 0 where there are none.
        foreign_inputs: Keys of the UNet's configuration that stand for inputs which the family does not have.

    Raises:
        ValueError: The text says what does not fit.
    """
    unet = folder.config("unet")
    for key in ("in_channels", "out_channels"):
        if unet.get(key, 4) != vae.latent_channels:
            raise ValueError(
                f"{folder.path}: the UNet's {key} is {unet.get(key, 4)}, the VAE's latents have {vae.latent_channels}; "
                "inpainting and other models with extra channels are not supported"
            )
    foreign = [key for key in foreign_inputs if unet.get(key) is not None]
    if foreign:
        raise ValueError(
            f"{folder.path}: the UNet wants inputs that text-to-image does not have ({', '.join(foreign)})"
        )
    wanted = unet.get("cross_attention_dim", 1280)
    if embed_dim and wanted != embed_dim:
        raise ValueError(
            f"{folder.path}: the UNet wants embeddings of size {wanted}, the text encoder makes {embed_dim}"
        )


def unet_size(folder: PipelineFolder, vae: Vae) -> tuple[int, int]:
    """Return height and width that the UNet was made for, in picture pixels.

    Raises:
        ValueError: If its configuration does not say.
    """
    sample_size = folder.config("unet").get("sample_size")
    if sample_size is None:
        raise ValueError(f"{folder.path}: the UNet's configuration has no sample_size")
    rows, columns = sample_size if isinstance(sample_size, list) else (sample_size, sample_size)
    return rows * vae.scale_factor, columns * vae.scale_factor
