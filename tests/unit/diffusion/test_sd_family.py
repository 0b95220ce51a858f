"""The Stable Diffusion adapter against the stock pipeline, on the tiny random-weight model."""

import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel

from diffusion.loading import load_model
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.noise import draw_noise
from diffusion.schedulers import Stepper, known_schedulers, parse_scheduler_config, scheduler_for
from diffusion.trajectory import Trajectory, denoise

STEPS = 6
BY_BETAS = known_schedulers("PNDMScheduler", {})


def stock_pipeline(
    folder: Path, dtype: torch.dtype = torch.float32, scheduler: str = "ddim"
) -> StableDiffusionPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
        pipeline.scheduler = getattr(diffusers, BY_BETAS[scheduler]).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def our_latents(
    model: Model,
    prompt: str,
    negative_prompt: str,
    *,
    guidance: float,
    rescale: float = 0.0,
    num_images: int = 1,
    scheduler: str = "ddim",
    steps: int = STEPS,
) -> torch.Tensor:
    config, own_class = parse_scheduler_config(model.info.scheduler_config), model.info.scheduler_class
    stepper = Stepper(*scheduler_for(scheduler, config, own_class=own_class), steps)
    noise = draw_noise(model.latents_shape(0, 0, num_images), 11)
    trajectory = Trajectory(noise * stepper.schedule.init_noise_sigma, stepper, dtype=model.dtype)
    conditioning = model.encode_prompt(prompt, negative_prompt, guided=guidance > 1)

    def evaluate(now: Trajectory) -> torch.Tensor:
        return model.evaluate([question(now.model_input(), now.timestep, conditioning, guidance, rescale)])[0]

    *_, last = denoise(trajectory, evaluate, lambda step: True, stop_step=steps)
    return last.latents


def question(
    latents: torch.Tensor, timestep: float, conditioning: Conditioning, guidance: float = 7.5, rescale: float = 0.0
) -> Evaluation:
    return Evaluation(
        latents=latents,
        timestep=timestep,
        conditioning=conditioning,
        guidance_scale=guidance,
        guidance_rescale=rescale,
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("guidance", "rescale", "negative_prompt", "num_images"),
    [(7.5, 0.0, "", 1), (7.5, 0.7, "a dog", 1), (1.0, 0.0, "", 1), (0.5, 0.0, "", 1), (3.0, 0.5, "a dog", 2)],
)
def test_latents_are_bit_identical_to_the_stock_pipeline(
    changed_copy, prediction_type, guidance, rescale, negative_prompt, num_images
):
    folder = changed_copy({"scheduler/scheduler_config.json": {"prediction_type": prediction_type}})
    model = load_model(folder, device="cpu")
    ours = our_latents(model, "a cat", negative_prompt, guidance=guidance, rescale=rescale, num_images=num_images)
    theirs = stock_pipeline(folder)(
        "a cat",
        negative_prompt=negative_prompt,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        guidance_rescale=rescale,
        num_images_per_prompt=num_images,
        generator=[torch.Generator().manual_seed(11 + index) for index in range(num_images)],
        output_type="latent",
    ).images
    if rescale:
        # The rescaling formula is our own, so the last bit may differ.
        assert float((ours - theirs).abs().max() / theirs.std()) < 1e-5
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scheduler", [name for name in BY_BETAS if name != "ddim"])
@pytest.mark.parametrize(
    ("steps", "spacing", "prediction_type"),
    [
        (20, "leading", "v_prediction"),
        (20, "trailing", "epsilon"),
        (20, "linspace", "epsilon"),
        pytest.param(50, "leading", "epsilon", marks=pytest.mark.slow),
        pytest.param(50, "trailing", "v_prediction", marks=pytest.mark.slow),
        (50, "linspace", "v_prediction"),
    ],
)
def test_every_scheduler_equals_the_stock_pipeline(changed_copy, scheduler, steps, spacing, prediction_type):
    config = {"timestep_spacing": spacing, "prediction_type": prediction_type}
    folder = changed_copy({"scheduler/scheduler_config.json": config})
    ours = our_latents(load_model(folder, device="cpu"), "a cat", "", guidance=1.0, scheduler=scheduler, steps=steps)
    theirs = stock_pipeline(folder, scheduler=scheduler)(
        "a cat",
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(11),
        output_type="latent",
    ).images
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_outdated_scheduler_keys_are_corrected_as_the_stock_pipeline_does(changed_copy):
    folder = changed_copy({"scheduler/scheduler_config.json": {"steps_offset": 0, "clip_sample": True}})
    model = load_model(folder, device="cpu")
    ours = our_latents(model, "a cat", "", guidance=7.5)
    theirs = stock_pipeline(folder)(
        "a cat", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(11), output_type="latent"
    ).images
    assert torch.equal(ours, theirs)


def test_pictures_equal_the_stock_pipelines(cloud, cloud_folder):
    ours = cloud.decode(our_latents(cloud, "a cat", "", guidance=7.5))
    theirs = stock_pipeline(cloud_folder)(
        "a cat", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(11), output_type="np"
    ).images
    assert ours.shape == (1, 128, 128, 3)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, (theirs * 255).round().astype(np.uint8))


def test_evaluations_at_different_steps_share_a_forward_and_equal_their_own(cloud):
    prompts = [
        cloud.encode_prompt(text, "a dog", guided=guided)
        for text, guided in (("a cat", True), ("a bird", False), ("", True))
    ]
    questions = [
        question(draw_noise((1, 4, 16, 16), 1), 981.0, prompts[0]),
        question(draw_noise((2, 4, 16, 16), 2), 500.0, prompts[1], guidance=1.0),
        question(draw_noise((1, 4, 16, 16), 3), 1.0, prompts[2], guidance=3.0, rescale=0.7),
    ]
    together = cloud.evaluate(questions)
    assert [tuple(prediction.shape) for prediction in together] == [(1, 4, 16, 16), (2, 4, 16, 16), (1, 4, 16, 16)]
    for asked, answer in zip(questions, together, strict=True):
        # Guidance multiplies the rounding of a forward with other rows.
        assert torch.allclose(answer, cloud.evaluate([asked])[0], atol=1e-4)
        assert answer.dtype == torch.float32


def test_an_unguided_evaluation_costs_one_row_and_a_guided_one_two(cloud):
    rows = []
    hook = cloud.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    for guidance in (1.0, 1.1):
        prompt = cloud.encode_prompt("a cat", guided=guidance > 1.0)
        cloud.evaluate([question(draw_noise((1, 4, 16, 16), 1), 1.0, prompt, guidance=guidance)])
    hook.remove()
    assert rows == [1, 2]


def test_guidance_without_negative_embeds_is_refused(cloud):
    prompt = cloud.encode_prompt("a cat", guided=False)
    assert prompt.negative_prompt_embeds is None
    with pytest.raises(ValueError, match="needs negative_prompt_embeds"):
        cloud.evaluate([question(draw_noise((1, 4, 16, 16), 1), 1.0, prompt)])


def test_a_prompt_longer_than_the_encoder_is_cut_off(cloud):
    long = cloud.encode_prompt("a cat " * 100, guided=False).prompt_embeds
    assert long.shape == (1, 77, 16)


def test_tensors_are_free_of_autograd(cloud):
    prompt = cloud.encode_prompt("a cat", guided=True)
    assert not prompt.prompt_embeds.requires_grad
    assert not cloud.evaluate([question(draw_noise((1, 4, 16, 16), 1), 1.0, prompt)])[0].requires_grad
    assert not any(parameter.requires_grad for parameter in cloud.network.parameters())
    assert not cloud.network.training


def test_sizes_are_latent_pixels_and_zero_means_the_default(cloud):
    assert cloud.latents_shape(0, 0, 1) == (1, 4, 16, 16)
    assert cloud.latents_shape(64, 256, 3) == (3, 4, 8, 32)


@pytest.mark.parametrize(("height", "width"), [(100, 128), (128, 7), (-8, 128), (4, 4)])
def test_a_size_that_does_not_fit_names_the_multiple(cloud, height, width):
    with pytest.raises(ValueError, match="must be multiples of 8"):
        cloud.latents_shape(height, width, 1)


def test_no_pictures_is_refused(cloud):
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        cloud.latents_shape(0, 0, 0)


def test_other_sizes_than_the_default_run_through(cloud):
    prompt = cloud.encode_prompt("a cat", guided=True)
    latents = draw_noise(cloud.latents_shape(72, 136, 1), 1)
    assert cloud.evaluate([question(latents, 1.0, prompt)])[0].shape == (1, 4, 9, 17)
    assert cloud.decode(latents).shape == (1, 72, 136, 3)


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_runs_and_a_vae_with_force_upcast_decodes_in_float32(cloud_folder, name, dtype):
    model = load_model(cloud_folder, device="cpu", dtype=name)
    latents = our_latents(model, "a cat", "", guidance=7.5)
    assert latents.dtype == dtype
    assert latents.isfinite().all()
    assert model.decode(latents).shape == (1, 128, 128, 3)
    assert model.vae.network.dtype == torch.float32
    assert model.info.dtype == name


@pytest.fixture(scope="module")
def small_pair_folder(tmp_path_factory) -> Path:
    """A model in the bundled pair's layout: AutoencoderTiny, 16 latent channels, 8 x 8 latents, v_prediction."""
    folder = tmp_path_factory.mktemp("pair") / "cloud"
    pipeline = stock_pipeline(Path(__file__).parents[2] / "data" / "sd-tiny" / "cloud")
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        dict(pipeline.unet.config) | {"in_channels": 16, "out_channels": 16, "sample_size": 8}
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=16,
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipeline.register_modules(unet=unet, vae=vae, scheduler=scheduler)
    pipeline.tokenizer.model_max_length = 24
    pipeline.save_pretrained(folder)
    return folder


def test_a_tiny_autoencoder_with_16_channels_and_zero_snr_runs(small_pair_folder):
    model = load_model(small_pair_folder, device="cpu")
    assert model.info.prediction_type == "v_prediction"
    assert model.info.latent_channels == 16
    assert (model.info.vae_scale_factor, model.info.default_height) == (8, 64)
    assert (model.info.vae_scaling_factor, model.info.vae_shift_factor) == (0.7, 0.1)
    assert model.encode_prompt("red apple", guided=False).prompt_embeds.shape == (1, 24, 16)
    latents = our_latents(model, "red apple", "", guidance=3.0)
    theirs = stock_pipeline(small_pair_folder)(
        "red apple",
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(11),
        output_type="latent",
    ).images
    assert torch.equal(latents, theirs)


def test_decoding_undoes_scaling_and_shift(small_pair_folder):
    model = load_model(small_pair_folder, device="cpu")
    latents = draw_noise((2, 16, 8, 8), 1)
    vae = AutoencoderTiny.from_pretrained(small_pair_folder, subfolder="vae")
    with torch.inference_mode():
        pictures = vae.decode(latents / 0.7 + 0.1).sample
    expected = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(model.decode(latents), expected.astype(np.uint8))


def test_a_tiny_autoencoder_decodes_in_the_models_dtype(small_pair_folder):
    model = load_model(small_pair_folder, device="cpu", dtype="bfloat16")
    assert model.decode(draw_noise((1, 16, 8, 8), 1)).shape == (1, 64, 64, 3)
    assert model.vae.network.dtype == torch.bfloat16
