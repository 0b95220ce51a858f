"""Where a model is: a folder, or a hub id that is fetched once."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from diffusion.weight_files import first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Safetensors only: other weight files can run code when they are opened.
_HUB_FILES = [
    "model_index.json",
    "*/*.json",
    "tokenizer*/*",
    "*/diffusion_pytorch_model*.safetensors",
    "*/model*.safetensors",
]
_HUB_UNWANTED = ["*.fp16.*", "*non_ema*", "*ema_only*", "safety_checker/*", "feature_extractor/*", "image_encoder/*"]
_HUB_VAE_FILES = [
    "model_index.json",
    "config.json",
    "diffusion_pytorch_model*.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model*.safetensors",
]


def locate(path_or_id: str | Path) -> Path:
    """Return the folder of a model; a hub id is fetched first.

    Raises:
        OSError: If there is no such folder and it cannot be fetched.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    text = str(path_or_id)
    if path.exists():
        raise NotADirectoryError(f"{text} is a file; a model is a diffusers pipeline folder or a hub id")
    if not _HUB_ID.fullmatch(text):
        raise FileNotFoundError(f"there is no model folder {text}")
    return _fetch(text, _HUB_FILES, needed=("unet/*.safetensors", "transformer/*.safetensors"))


def locate_vae(path_or_id: str) -> Path:
    """Return the folder of a VAE, or of a pipeline that has one; a hub id is fetched first, the VAE alone.

    Raises:
        OSError: If there is no such folder and it cannot be fetched.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _HUB_ID.fullmatch(path_or_id):
        raise FileNotFoundError(f"there is no VAE folder {path_or_id}")
    return _fetch(path_or_id, _HUB_VAE_FILES, needed=("*.safetensors", "vae/*.safetensors"))


def _fetch(hub_id: str, files: list[str], *, needed: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.logging import set_verbosity

    # Its warnings about retries would bury the one line below; the progress of a download stays.
    set_verbosity(logging.ERROR)
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=files, ignore_patterns=_HUB_UNWANTED))
        if not any(any(folder.glob(pattern)) for pattern in needed):
            # Some repositories hold half-precision weights only.
            fp16 = [name.replace("*.", "*.fp16.") for name in needed] + ["*/*.fp16.safetensors", "*/*.index.fp16.json"]
            folder = Path(snapshot_download(hub_id, allow_patterns=fp16, ignore_patterns=_HUB_UNWANTED[1:]))
    except Exception as error:  # the hub's client lets the exceptions of its transport through
        raise OSError(
            f"{hub_id} is neither a folder here nor a model that the hub hands out now ({first_line(error)}); "
            "check the name and the network, or give a folder"
        ) from error
    return folder
