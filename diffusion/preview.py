"""What a trajectory will come to, seen on the way: the clean latents two steps point to, and colours for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.schedule import Schedule
from diffusion.vae import TINY_CLASSES, to_pixels

if TYPE_CHECKING:
    from diffusion.families.base import FamilyModel

# Pictures of random colours to learn the colours of latents from: latent pixels a side, and how many.
_SIDE, _NUM_PICTURES = 8, 48
_COLOURS_A_SIDE = 4
# Directions of the latents that these pictures hardly move say nothing of colours.
_RIDGE = 1e-3


def clean_latents(schedule: Schedule, earlier: tuple[int, Tensor], later: tuple[int, Tensor]) -> Tensor:
    """Return the clean latents that two states of one trajectory point to.

    Two states are two equations `x = alpha * x0 + sigma * noise` for the same x0 and noise: a first-order solver
    (DDIM, Euler) moves by them exactly, a multistep one nearly.

    Args:
        schedule: Of the trajectory.
        earlier: Step index and x there, scheduler scaling.
        later: Likewise, of a larger step index; the number of steps stands for the end.
    """
    (i, x), (j, y) = earlier, later
    alphas = (*schedule.alphas, 1.0)
    determinant = alphas[j] * schedule.sigmas[i] - alphas[i] * schedule.sigmas[j]
    return (schedule.sigmas[i] * y.float() - schedule.sigmas[j] * x.float()) / determinant


class Previewer:
    """Turns latents into a picture, quickly: with a tiny autoencoder where one decodes, else colour by colour.

    The colours are a linear map of each latent pixel, fitted once to how the model's own VAE encodes pictures of random
    colours: it needs no table of published factors, and works for every family.

    Args:
        model: Its VAE is loaded when the first picture is wanted.
    """

    def __init__(self, model: FamilyModel) -> None:
        self._model = model
        self._colours: Tensor | None = None

    def __call__(self, latents: Tensor) -> NDArray[Any]:
        """Return the first picture `[h, w, 3]` of a batch, of a video its middle frame; uint8, RGB.

        With colours it is of the latents' size, else of the picture's.

        Args:
            latents: Clean, in the model's layout, scheduler scaling.
        """
        first = self._picture_of(latents)
        with torch.inference_mode():
            if self._model.vae.class_name in TINY_CLASSES:
                decoded: NDArray[Any] = to_pixels(self._model.vae.decode(first))[0]
                return decoded
            if self._colours is None:
                self._colours = self._fit()
            rows = first.float().cpu().movedim(1, -1)
            coloured: NDArray[Any] = to_pixels((_with_one(rows) @ self._colours).movedim(-1, 1))[0]
            return coloured

    def _picture_of(self, latents: Tensor) -> Tensor:
        match self._model.layout:
            case "BFCHW":
                return latents[:1, latents.shape[1] // 2]
            case "BCFHW":
                return latents[:1, :, latents.shape[2] // 2]
            case _:
                return latents[:1]

    def _fit(self) -> Tensor:
        """Return `[C + 1, 3]`: least squares from latent pixels, and a one, to the mean colours under them."""
        vae, generator = self._model.vae, torch.Generator().manual_seed(0)
        few = torch.rand(_NUM_PICTURES, 3, _COLOURS_A_SIDE, _COLOURS_A_SIDE, generator=generator) * 2 - 1
        side = _SIDE * vae.scale_factor
        pictures = torch.nn.functional.interpolate(few, size=(side, side), mode="bicubic").clamp(-1, 1)
        latents = vae.latents_of(pictures).movedim(1, -1).reshape(-1, vae.latent_channels)
        wanted = torch.nn.functional.avg_pool2d(pictures, vae.scale_factor).movedim(1, -1).reshape(-1, 3)
        known = _with_one(latents)
        ridge = _RIDGE * len(known) * torch.eye(known.shape[1])
        fitted: Tensor = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted)
        return fitted


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)
