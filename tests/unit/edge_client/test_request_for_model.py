"""What a request leaves to the model, and what it may not ask of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from diffusion.loading import load_model
from diffusion.model import ModelInfo
from edge_client.request import GenerationRequest
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair

PICTURES = ModelInfo(
    name="large",
    fingerprint="a",
    family="sd",
    prediction_type="epsilon",
    latent_channels=4,
    layout="BCHW",
    vae_scale_factor=8,
    vae_scaling_factor=0.18215,
    vae_shift_factor=0.0,
    vae_fingerprint="b",
    text_encoder_fingerprint="c",
    scheduler_class="DDIMScheduler",
    scheduler_config=json.dumps({"beta_schedule": "scaled_linear"}),
    default_height=512,
    default_width=512,
    num_parameters=1,
    dtype="float32",
    device="cpu",
    default_guidance_scale=3.0,
)
DISTILLED = dataclasses.replace(PICTURES, name="flux", guidance_distilled=True)
VIDEOS = dataclasses.replace(PICTURES, layout="BFCHW", default_num_frames=49, default_fps=8)


def test_guidance_scheduler_and_length_that_nobody_named_are_the_models() -> None:
    request = GenerationRequest(prompt="x").for_model(VIDEOS)
    assert (request.guidance_scale, request.scheduler, request.num_frames, request.fps) == (3.0, "ddim", 49, 8)


def test_what_was_named_stands() -> None:
    request = GenerationRequest(prompt="x", guidance_scale=1.0, num_frames=9, fps=24).for_model(VIDEOS)
    assert (request.guidance_scale, request.num_frames, request.fps, request.guided) == (1.0, 9, 24, False)


def test_pictures_have_neither_frames_nor_speed() -> None:
    request = GenerationRequest(prompt="x").for_model(PICTURES)
    assert (request.num_frames, request.fps) == (None, None)


def test_whether_it_is_guided_is_unknown_before_the_model_is() -> None:
    with pytest.raises(ValueError, match="no model is known yet"):
        _ = GenerationRequest(prompt="x").guided


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        (PICTURES, {"num_frames": 9}, "num_frames is for video models; large makes pictures: leave it out"),
        (PICTURES, {"fps": 9}, "fps is for video models; large makes pictures: leave it out"),
        (DISTILLED, {"negative_prompt": "fog"}, "flux is guidance-distilled and takes no negative_prompt"),
        (DISTILLED, {"guidance_rescale": 0.5}, "flux is guidance-distilled and takes no guidance_rescale"),
        (PICTURES, {"scheduler": "dpm"}, "does not run this model"),
    ],
)
def test_what_the_model_does_not_have_is_refused(model, options, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        GenerationRequest(prompt="x", **options).for_model(model)


def test_the_bundled_pair_names_its_own_guidance() -> None:
    for folder in bundled_pair():
        assert load_model(folder, device="cpu").info.default_guidance_scale == DEFAULT_GUIDANCE_SCALE
