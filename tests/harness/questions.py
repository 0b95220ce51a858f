"""What a model is asked, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffusion.model import Evaluation, Model
from diffusion.noise import draw_noise


def questions(model: Model, guidance_scales: Sequence[float]) -> list[Evaluation]:
    shape = model.latents_shape(0, 0, 1)
    return [
        Evaluation(
            latents=draw_noise(shape, index).to(model.device, model.dtype),
            timestep=float(150 * index + 1),
            conditioning=model.encode_prompt(f"red apple {index}", guided=True),
            guidance_scale=scale,
        )
        for index, scale in enumerate(guidance_scales)
    ]


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu() - theirs.cpu()).norm() / theirs.cpu().norm())
