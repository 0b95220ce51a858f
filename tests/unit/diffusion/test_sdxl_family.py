"""The SDXL adapter against the stock pipeline, on the tiny random-weight model; its golden trajectories have a file."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from diffusion.noise import draw_noise
from diffusion.schedulers import Stepper, parse_scheduler_config, scheduler_for
from diffusion.trajectory import Trajectory, denoise

FOLDER = Path(__file__).parents[2] / "data" / "sdxl-tiny" / "cloud"
STEPS = 6


def our_latents(
    model: Model, negative_prompt: str, *, guidance: float, num_images: int, height: int = 0, width: int = 0
) -> torch.Tensor:
    config = parse_scheduler_config(model.info.scheduler_config)
    stepper = Stepper(*scheduler_for("ddim", config, own_class=model.info.scheduler_class), STEPS)
    noise = draw_noise(model.latents_shape(height, width, num_images), 11)
    trajectory = Trajectory(noise * stepper.schedule.init_noise_sigma, stepper)
    conditioning = model.encode_prompt("a cat", negative_prompt, guided=guidance > 1)

    def evaluate(now: Trajectory) -> torch.Tensor:
        asked = Evaluation(
            latents=now.model_input(), timestep=now.timestep, conditioning=conditioning, guidance_scale=guidance
        )
        return model.evaluate([asked])[0]

    *_, last = denoise(trajectory, evaluate, lambda step: True, stop_step=STEPS)
    return last.latents


def stock(negative_prompt: str | None, *, guidance: float, num_images: int, output: str, **size: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionXLPipeline.from_pretrained(FOLDER, add_watermarker=False)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a cat",
        negative_prompt=negative_prompt,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        num_images_per_prompt=num_images,
        generator=[torch.Generator().manual_seed(11 + index) for index in range(num_images)],
        output_type=output,
        **size,
    ).images


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(FOLDER, device="cpu")


# diffusers takes no negative prompt (None) for zeros, and the empty one for a text; on our command line both are none.
@pytest.mark.parametrize(
    ("guidance", "negative_prompt", "num_images", "size"),
    [
        (5.0, "", 1, {}),
        (5.0, "a dog", 2, {}),
        (1.0, "", 1, {}),
        (5.0, "a dog", 1, {"height": 64, "width": 128}),
    ],
)
def test_latents_equal_the_stock_pipelines(model, guidance, negative_prompt, num_images, size):
    ours = our_latents(model, negative_prompt, guidance=guidance, num_images=num_images, **size)
    theirs = stock(negative_prompt or None, guidance=guidance, num_images=num_images, output="latent", **size)
    assert float((ours - theirs).abs().max() / theirs.std()) < 1e-4


def test_pictures_equal_the_stock_pipelines(model):
    ours = model.decode(our_latents(model, "", guidance=5.0, num_images=1))
    theirs = stock(None, guidance=5.0, num_images=1, output="np")
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


def test_sessions_of_one_batch_equal_each_alone(model):
    questions = [
        Evaluation(
            latents=draw_noise(model.latents_shape(0, 0, 1), seed),
            timestep=float(timestep),
            conditioning=model.encode_prompt(prompt, guided=guidance > 1),
            guidance_scale=guidance,
        )
        for seed, (prompt, timestep, guidance) in enumerate((("a cat", 981, 5.0), ("a bird", 500, 1.0), ("", 1, 3.0)))
    ]
    for asked, answer in zip(questions, model.evaluate(questions), strict=True):
        assert torch.allclose(answer, model.evaluate([asked])[0], atol=1e-4)


def test_a_negative_prompt_that_is_none_is_all_zeros_where_the_pipeline_says_so(changed_copy):
    zeros = load_model(FOLDER, device="cpu").encode_prompt("a cat", "", guided=True)
    assert not zeros.negative_prompt_embeds.any()
    assert not zeros.negative_pooled_prompt_embeds.any()
    encoded = load_model(
        changed_copy({"model_index.json": {"force_zeros_for_empty_prompt": False}}, FOLDER), device="cpu"
    )
    assert encoded.encode_prompt("a cat", "", guided=True).negative_prompt_embeds.any()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"unet/config.json": {"cross_attention_dim": 16}}, "the UNet wants embeddings of size 16, the text encoder"),
        ({"unet/config.json": {"addition_embed_type": None}}, "takes no pooled embeddings and time ids"),
        ({"unet/config.json": {"projection_class_embeddings_input_dim": 56}}, "refiners"),
        (
            {"model_index.json": {"text_encoder_2": ["transformers", "CLIPTextModel"]}},
            "text_encoder_2 is a CLIPTextModel, supported: CLIPTextModelWith",
        ),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_refused_in_one_line(changed_copy, changes, problem):
    with pytest.raises(ValueError, match=problem) as refusal:
        load_model(changed_copy(changes, FOLDER), device="cpu")
    assert "\n" not in str(refusal.value)
