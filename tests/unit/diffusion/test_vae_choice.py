"""Another VAE than the model's own, tiles and slices; against diffusers' own."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from diffusion.loading import load_model
from diffusion.noise import draw_noise
from diffusion.vae_choice import VaeChoice
from models.tiny.build import build


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model, the same without its VAE, and VAEs that stand alone."""
    root = tmp_path_factory.mktemp("vae")
    for family in ("sd", "wan"):
        build(family, root / family)
    shutil.copytree(root / "sd", root / "bare", ignore=shutil.ignore_patterns("vae"))
    torch.manual_seed(5)
    for name, channels, sides in (("tiny", 4, 4), ("wide", 16, 4), ("coarse", 4, 3)):
        blocks = (4,) * sides
        diffusers.AutoencoderTiny(
            latent_channels=channels,
            encoder_block_out_channels=blocks,
            decoder_block_out_channels=blocks,
            num_encoder_blocks=(1,) * sides,
            num_decoder_blocks=(1,) * sides,
        ).save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


def load(folder: Path, **choice):
    return load_model(folder, device="cpu", vae=VaeChoice(**choice))


def test_a_tiny_autoencoder_decodes_as_in_the_stock_pipeline(folders) -> None:
    model = load(folders["sd"], path_or_id=str(folders["tiny"]))
    latents = draw_noise(model.latents_shape(64, 64, 2), 1)
    stock = diffusers.StableDiffusionPipeline.from_pretrained(
        folders["sd"], vae=diffusers.AutoencoderTiny.from_pretrained(folders["tiny"]), safety_checker=None
    )
    with torch.inference_mode():
        pixels = stock.vae.decode(latents / stock.vae.config.scaling_factor).sample
    theirs = (stock.image_processor.postprocess(pixels, output_type="np") * 255).round()
    assert np.abs(model.decode(latents).astype(int) - theirs.astype(int)).max() <= 1


def test_what_the_other_end_is_told_is_the_models_own_vae(folders) -> None:
    assert load(folders["sd"], path_or_id=str(folders["tiny"])).info == load(folders["sd"]).info


def test_a_folder_without_a_vae_is_whole_with_one_that_is_named(folders) -> None:
    with pytest.raises(ValueError, match="vae"):
        load(folders["bare"])
    model = load(folders["bare"], path_or_id=str(folders["tiny"]))
    assert (model.info.latent_channels, model.info.vae_scale_factor) == (4, 8)
    assert model.decode(draw_noise(model.latents_shape(64, 64, 1), 1)).shape == (1, 64, 64, 3)


def test_a_pipelines_folder_lends_its_vae(folders) -> None:
    lent = load(folders["bare"], path_or_id=str(folders["sd"]))
    latents = draw_noise(lent.latents_shape(64, 64, 1), 1)
    assert np.array_equal(lent.decode(latents), load(folders["sd"]).decode(latents))


@pytest.mark.parametrize(
    ("family", "vae", "problem"),
    [
        ("sd", "wide", r"--vae .*wide has 16 latent channels, .*sd wants 4"),
        ("sd", "coarse", r"--vae .*coarse has 4 picture pixels per latent pixel, .*sd wants 8"),
        ("wan", "tiny", r"--vae .*tiny is a AutoencoderTiny, supported: AutoencoderKLWan"),
        ("sd", "bare", r"vae is a AutoencoderKL|config.json is missing"),
        ("sd", "nowhere", "there is no VAE folder"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused_in_one_line(folders, family, vae, problem) -> None:
    path = folders.get(vae, Path("./nowhere/at/all"))
    with pytest.raises((ValueError, OSError), match=problem) as refusal:
        load(folders[family], path_or_id=str(path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("family", ["sd", "wan"])
def test_slices_are_the_same_pictures(folders, family) -> None:
    whole, sliced = load(folders[family]), load(folders[family], slicing=True)
    frames = 5 if family == "wan" else 0
    latents = draw_noise(whole.latents_shape(64, 64, 3, frames), 1)
    assert np.abs(sliced.decode(latents).astype(int) - whole.decode(latents).astype(int)).max() <= 1


@pytest.mark.parametrize("family", ["sd", "wan"])
def test_tiles_are_nearly_the_same_picture(folders, family) -> None:
    whole, tiled = load(folders[family]), load(folders[family], tiling=True)
    frames = 5 if family == "wan" else 0
    latents = draw_noise(whole.latents_shape(512, 512, 1, frames), 1)
    ours, theirs = tiled.decode(latents).astype(int), whole.decode(latents).astype(int)
    assert ours.shape == theirs.shape
    assert 0 < np.abs(ours - theirs).mean() < 8  # else nothing was tiled


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="--vae is empty"):
        VaeChoice(path_or_id=" ")
