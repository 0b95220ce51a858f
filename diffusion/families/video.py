"""What the video families share: latents with an axis of frames, and frames out of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.families.base import FamilyModel
from diffusion.vae import to_pixels


class VideoModel(FamilyModel):
    """A `FamilyModel` whose VAE compresses frames, too."""

    default_fps: ClassVar[int]
    """Frames a second that the family's users play."""

    @property
    @abstractmethod
    def default_num_frames(self) -> int:
        """Frames that the network was made for."""

    @property
    def frame_multiple(self) -> int:
        """What the frames after the first must be a multiple of."""
        return self.vae.temporal_scale_factor

    @property
    def size_multiple(self) -> int:
        """Pixels of a token, each way."""
        return self.info.vae_scale_factor * self.patch_side

    @property
    @abstractmethod
    def patch_side(self) -> int:
        """Latent pixels of a token, each way."""

    def more_info(self) -> dict[str, Any]:
        """Say what a video is by default."""
        return {
            "default_num_frames": self.folder.recommended("num_frames", self.default_num_frames),
            "vae_temporal_scale_factor": self.vae.temporal_scale_factor,
            "default_fps": self.default_fps,
        }

    def latents_shape(self, height: int, width: int, num_images: int, num_frames: int = 0) -> tuple[int, ...]:
        """Return the latents' shape in the model's layout; 0 is the model's default.

        Raises:
            ValueError: The VAE cannot make this size or so many frames.
        """
        rows, columns = self._latent_size(height, width, num_images)
        frames = self.num_latent_frames(num_frames or self.info.default_num_frames)
        if self.layout == "BFCHW":
            return num_images, frames, self.info.latent_channels, rows, columns
        return num_images, self.info.latent_channels, frames, rows, columns

    def num_latent_frames(self, num_frames: int) -> int:
        """Return how many latent frames a video has.

        Raises:
            ValueError: The VAE cannot make so many frames.
        """
        multiple = self.frame_multiple
        if num_frames < 1 or (num_frames - 1) % multiple:
            raise ValueError(
                f"num_frames must be a multiple of {multiple} and one more for this model "
                f"({multiple + 1}, {2 * multiple + 1}, ...), not {num_frames}"
            )
        return (num_frames - 1) // self.vae.temporal_scale_factor + 1

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[Any]:
        """Turn clean latents (scheduler scaling) into videos `[B, F, H, W, 3]`, uint8 RGB."""
        if self.layout == "BFCHW":
            latents = latents.movedim(1, 2)
        return to_pixels(self.vae.decode(latents).movedim(2, 1))
