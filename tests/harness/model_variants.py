"""Copies of the tiny models with one thing changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def copy_model(source: Path, target: Path, changes: dict[str, dict[str, Any]] | None = None) -> Path:
    """Copy a pipeline folder, and change keys of its JSON files.

    Args:
        source: Pipeline folder.
        target: Where the copy goes.
        changes: File below the folder -> keys and their new values.
    """
    shutil.copytree(source, target)
    for name, values in (changes or {}).items():
        file = target / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return target


def shift_weights(folder: Path, part: str, stem: str) -> None:
    """Change one tensor of a part a little, so that its fingerprint differs."""
    from safetensors.torch import load_file, save_file

    file = folder / part / f"{stem}.safetensors"
    weights = load_file(file)
    name = sorted(name for name, tensor in weights.items() if tensor.is_floating_point())[0]
    weights[name] = weights[name] + 0.01
    save_file(weights, file, metadata={"format": "pt"})


def with_latent_channels(source: Path, target: Path, channels: int) -> Path:
    """Copy a pipeline folder with a fresh random UNet and VAE for another number of latent channels."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    copy_model(source, target)
    unet = UNet2DConditionModel.load_config(target / "unet")
    UNet2DConditionModel.from_config(unet, in_channels=channels, out_channels=channels).save_pretrained(target / "unet")
    vae = AutoencoderKL.load_config(target / "vae")
    AutoencoderKL.from_config(vae, latent_channels=channels).save_pretrained(target / "vae")
    return target
