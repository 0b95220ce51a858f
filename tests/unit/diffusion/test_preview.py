"""Previews: what two states point to, and the colours of latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.loading import load_model
from diffusion.noise import draw_noise
from diffusion.preview import Previewer, clean_latents
from diffusion.scheduler_config import scheduler_for
from diffusion.schedulers import Stepper
from models import bundled_pair
from models.tiny.build import build

SHAPE = (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("name", "own_class", "config"),
    [
        ("ddim", "DDIMScheduler", {"beta_schedule": "scaled_linear"}),
        ("euler", "DDIMScheduler", {"beta_schedule": "scaled_linear"}),
        ("euler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 4), (0, 19), (18, 20), (19, 20)])
def test_two_states_of_a_first_order_solver_point_to_the_clean_latents(name, own_class, config, first, second) -> None:
    stepper = Stepper(*scheduler_for(name, config, own_class=own_class), 20)
    schedule, alphas = stepper.schedule, (*stepper.schedule.alphas, 1.0)
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    states = [(step, alphas[step] * clean + schedule.sigmas[step] * noise) for step in (first, second)]
    assert torch.allclose(clean_latents(schedule, *states), clean, atol=2e-3)


def test_the_colours_of_latents_are_nearly_those_of_the_decoded_picture(monkeypatch) -> None:
    model = load_model(bundled_pair().edge, device="cpu")
    pictures = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(5)) * 2 - 1
    pictures = torch.nn.functional.interpolate(pictures, size=(64, 64), mode="bilinear")
    latents = model.vae.latents_of(pictures)
    decoded = Previewer(model)(latents)  # the bundled pair's own is a tiny autoencoder
    assert decoded.shape == (64, 64, 3)
    monkeypatch.setattr("diffusion.preview.TINY_CLASSES", ())
    coloured = Previewer(model)(latents)
    assert coloured.shape == (8, 8, 3)
    small = decoded.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(coloured - small).mean() < 12
    assert np.corrcoef(coloured.ravel(), small.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "cogvideox", "wan"])
def test_every_family_has_colours(tmp_path, family) -> None:
    build(family, tmp_path / family)
    model = load_model(tmp_path / family, device="cpu")
    frames = 9 if model.info.default_num_frames else 0
    picture = Previewer(model)(draw_noise(model.latents_shape(64, 64, 2, frames), 0))
    assert (picture.shape, picture.dtype) == ((8, 8, 3), np.uint8)
