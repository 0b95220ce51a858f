"""Every family on tiny random-weight models, against the stock pipelines of diffusers."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.parity import (
    BOUND,
    HANDOFF_STEP,
    NUM_STEPS,
    PROMPT,
    SEED,
    SUBJECTS,
    difference,
    our_latents,
    stock_handoff,
    stock_latents,
    stock_pipeline,
    unpacked,
)
from diffusion.loading import load_model
from diffusion.model import Evaluation
from diffusion.noise import draw_noise
from models.tiny.build import build

GUIDED = ["sd", "sdxl", "sd3", "cogvideox", "wan"]
VIDEOS = ["cogvideox", "cogvideox-2b", "cogvideox-1.5", "wan"]
PICTURES = [name for name in SUBJECTS if name not in VIDEOS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a family's folder of the large model; the small one stands beside it."""
    root = tmp_path_factory.mktemp("tiny")

    def made(name: str) -> Path:
        if not (root / name).exists():
            for size in ("large", "small"):
                build(name, root / name / size, size=size)
        return root / name / "large"

    return made


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("num_images", [1, 2])
def test_latents_equal_the_stock_pipelines(folders, name, num_images):
    subject, model, stock = SUBJECTS[name], load_model(folders(name), device="cpu"), stock_pipeline(folders(name))
    ours = our_latents(model, model, subject, handoff_step=NUM_STEPS, num_images=num_images)
    theirs = stock_latents(stock, subject, num_images=num_images)
    assert difference(ours, unpacked(stock, theirs, tuple(ours.shape))) < BOUND


@pytest.mark.parametrize("name", GUIDED)
def test_latents_without_guidance_equal_the_stock_pipelines(folders, name):
    subject = dataclasses.replace(SUBJECTS[name], guidance_scale=1.0)
    model, stock = load_model(folders(name), device="cpu"), stock_pipeline(folders(name))
    ours = our_latents(model, model, subject, handoff_step=NUM_STEPS)
    assert difference(ours, stock_latents(stock, subject)) < BOUND


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_handoff_equals_both_stock_pipelines_run_by_hand(folders, name):
    paths = (folders(name), folders(name).with_name("small"))
    large, small = (load_model(path, device="cpu") for path in paths)
    stock, stock_small = (stock_pipeline(path) for path in paths)
    ours = our_latents(large, small, SUBJECTS[name], handoff_step=HANDOFF_STEP)
    theirs = unpacked(stock, stock_handoff(stock, stock_small, SUBJECTS[name]), tuple(ours.shape))
    assert difference(ours, theirs) < BOUND
    alone = our_latents(large, small, SUBJECTS[name], handoff_step=NUM_STEPS)
    assert difference(ours, alone) > 10 * BOUND  # else the small model was never asked


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_equal_the_stock_pipelines(folders, name):
    model, stock = load_model(folders(name), device="cpu"), stock_pipeline(folders(name))
    latents = draw_noise(model.latents_shape(128, 128, 1), 3)
    vae = stock.vae
    with torch.inference_mode():
        pixels = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0), return_dict=False)[
            0
        ]
    theirs = stock.image_processor.postprocess(pixels, output_type="np")
    assert np.abs(model.decode(latents).astype(int) - (theirs * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("name", SUBJECTS)
def test_sessions_of_one_batch_equal_each_alone(folders, name):
    model = load_model(folders(name), device="cpu")
    questions = [
        Evaluation(
            latents=draw_noise(model.latents_shape(128, 128, 1, 9 if name in VIDEOS else 0), seed),
            timestep=float(timestep),
            conditioning=model.encode_prompt(prompt, guided=guidance > 1),
            guidance_scale=guidance,
        )
        for seed, (prompt, timestep, guidance) in enumerate((("a cat", 981, 5.0), ("a bird", 500, 1.0), ("", 1, 3.0)))
    ]
    for asked, answer in zip(questions, model.evaluate(questions), strict=True):
        assert torch.allclose(answer, model.evaluate([asked])[0], atol=1e-4)


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_equal_the_stock_pipelines(folders, name):
    """The stock pipeline is asked for latents and decodes them; ours decodes the same."""
    subject, model, stock = SUBJECTS[name], load_model(folders(name), device="cpu"), stock_pipeline(folders(name))
    latents = stock_latents(stock, subject)
    frames = stock(
        PROMPT,
        num_inference_steps=NUM_STEPS,
        guidance_scale=subject.guidance_scale,
        generator=[torch.Generator().manual_seed(SEED)],
        negative_prompt=subject.negative_prompt,
        output_type="np",
        **subject.size,
    ).frames
    ours = model.decode(latents)
    assert ours.shape == (1, 9, 80, 64, 3) if name != "cogvideox-2b" else (1, 9, 64, 96, 3)
    assert np.abs(ours.astype(int) - (frames * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("name", "num_frames", "problem"),
    [
        ("cogvideox", 13, r"multiple of 8 and one more for this model \(9, 17, ...\), not 13"),
        ("wan", 8, r"multiple of 4 and one more for this model \(5, 9, ...\), not 8"),
        ("sd", 9, "num_frames is for video models; large makes pictures"),
    ],
)
def test_a_number_of_frames_that_the_vae_cannot_make_is_refused(folders, name, num_frames, problem):
    with pytest.raises(ValueError, match=problem):
        load_model(folders(name), device="cpu").latents_shape(64, 64, 1, num_frames)


def test_wan_reads_a_prompt_as_the_stock_pipeline_does(folders):
    model, stock = load_model(folders("wan"), device="cpu"), stock_pipeline(folders("wan"))
    prompt = "  a cat &amp;amp; a\n dog "
    theirs, _ = stock.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
    assert torch.allclose(model.encode_prompt(prompt, guided=False).prompt_embeds, theirs, atol=1e-6)


def test_wan_needs_no_word_of_a_second_transformer(folders, tmp_path):
    """Folders of 2.1 were written before there was one; whoever names one is refused."""
    copy = tmp_path / "copy"
    shutil.copytree(folders("wan"), copy)
    index = json.loads((copy / "model_index.json").read_text())
    assert index.pop("transformer_2") == [None, None]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert load_model(copy, device="cpu").info.family == "wan"
    index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"Wan 2\.2 with two transformers"):
        load_model(copy, device="cpu")


def test_sd3_without_its_t5_takes_zeros_as_the_stock_pipeline_does(folders, changed_copy):
    folder = changed_copy(
        {"model_index.json": {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}}, folders("sd3")
    )
    model = load_model(folder, device="cpu")
    stock = stock_pipeline(folder, text_encoder_3=None, tokenizer_3=None)
    ours = our_latents(model, model, SUBJECTS["sd3"], handoff_step=NUM_STEPS)
    assert difference(ours, stock_latents(stock, SUBJECTS["sd3"])) < BOUND


def test_flux_is_fed_its_guidance_and_schnell_is_not(folders):
    for name, fed in (("flux", True), ("flux-schnell", False)):
        model = load_model(folders(name), device="cpu")
        weak, strong = (
            our_latents(
                model,
                model,
                dataclasses.replace(SUBJECTS[name], guidance_scale=scale),
                handoff_step=NUM_STEPS,
            )
            for scale in (1.0, 8.0)
        )
        assert (difference(weak, strong) > BOUND) is fed


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_size_that_is_no_whole_number_of_tokens_is_refused(folders, name):
    with pytest.raises(ValueError, match="multiples of 16 for this model, not 128 x 136"):
        load_model(folders(name), device="cpu").latents_shape(128, 136, 1)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("sd3", {"transformer/config.json": {"pooled_projection_dim": 8}}, "pooled_projection_dim is 8, size of the"),
        ("sd3", {"transformer/config.json": {"patch_size": 4}}, "patch_size 4 is not supported"),
        ("flux", {"transformer/config.json": {"in_channels": 128}}, "in_channels is 128, values of a patch"),
        ("flux", {"transformer/config.json": {"joint_attention_dim": 8}}, "joint_attention_dim is 8, size of T5"),
        ("cogvideox", {"transformer/config.json": {"in_channels": 8}}, "in_channels is 8, channels of the VAE's"),
        ("wan", {"transformer/config.json": {"text_dim": 8}}, "text_dim is 8, size of UMT5's embeddings: 32"),
        ("wan", {"transformer/config.json": {"image_dim": 8}}, r"wants a picture \(image_dim\)"),
        ("sd", {"model_index.json": {"_guidance_scale": "much"}}, "is 'much', not a number of 0..100"),
        ("wan", {"model_index.json": {"_num_frames": 0}}, "_num_frames in model_index.json is 0, not a whole number"),
        ("sd", {"model_index.json": {"_guidance_scale": 101}}, "is 101, not a number of 0..100"),
        ("wan", {"model_index.json": {"expand_timesteps": True}}, "Wan 2.2 with two transformers or expanded"),
        (
            "flux",
            {"model_index.json": {"text_encoder_2": ["transformers", "CLIPTextModel"]}},
            "is a CLIPTextModel, supported: T5",
        ),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_refused_in_one_line(folders, changed_copy, name, changes, problem):
    with pytest.raises(ValueError, match=problem) as refusal:
        load_model(changed_copy(changes, folders(name)), device="cpu")
    assert "\n" not in str(refusal.value)


def test_the_same_call_writes_the_same_weights(tmp_path):
    for where in ("one", "two"):
        build("sd3", tmp_path / where, seed=3)
    build("sd3", tmp_path / "other", seed=4)
    one, two, other = (
        (tmp_path / where / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
        for where in ("one", "two", "other")
    )
    assert one == two != other
    assert json.loads((tmp_path / "one" / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"
