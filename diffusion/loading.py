from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusion.families import FAMILIES
from diffusion.families.base import FamilyModel
from diffusion.lora import fuse_loras
from diffusion.lora_file import Lora
from diffusion.model import Model
from diffusion.offload import Offload
from diffusion.pipeline_folder import PipelineFolder
from diffusion.weight_files import first_line

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
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


def load_model(
    path_or_id: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: Sequence[Lora] = (),
    offload: str = "none",
) -> Model:
    """Load a model from a diffusers pipeline folder or by hub id.

    The denoising network is loaded now; text encoder and VAE are checked now and loaded when first used.

    Args:
        path_or_id: A folder, or an id such as `CompVis/stable-diffusion-v1-4`, fetched once and kept in
            the hub's cache.
        device: auto, cpu or cuda.
        dtype: auto, float32, float16 or bfloat16.
        loras: Fused into its weights, one after the other.
        offload: One of `diffusion.offload.OFFLOADS`.

    Raises:
        ValueError: If it is no model that can be run here, or a LoRA does not fit; the text says what is wrong with it.
        OSError: If there is no such folder and it cannot be fetched.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    parts = Offload(offload, where)
    path = locate(path_or_id)
    folder = PipelineFolder(path, parts)
    if folder.pipeline_class not in FAMILIES:
        raise ValueError(
            f"{path} is a {folder.pipeline_class or 'pipeline without a class'}; supported: {', '.join(FAMILIES)}"
        )
    module, _, class_name = FAMILIES[folder.pipeline_class].partition(":")
    family = getattr(importlib.import_module(module), class_name)
    name = path.resolve().name if Path(path_or_id).is_dir() else str(path_or_id)
    model: FamilyModel = family(folder, name=name, device=where, dtype=precision)
    fuse_loras(model, loras)
    parts.begin()
    return model


def resolve_device(device: str) -> torch.device:
    """Return the device that a name stands for; `auto` is cuda where there is one, else cpu.

    Raises:
        ValueError: If the name is unknown, or there is no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a name stands for; `auto` is float16 on cuda, else float32.

    Raises:
        ValueError: If the name is unknown.
    """
    if dtype == "auto":
        # bfloat16 is as fast, where a card has it at all, but rounds 8 times more coarsely, and the latents are rounded
        # at every step. What float16 cannot hold shows: a model whose numbers overflow ends its sessions with an error.
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}, not {dtype!r}")
    return _DTYPES[dtype]


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
    return _fetch(text)


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.logging import set_verbosity

    # Its warnings about retries would bury the one line below; the progress of a download stays.
    set_verbosity(logging.ERROR)
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_UNWANTED))
        if not any((folder / "unet").glob("*.safetensors")):
            # Some repositories hold half-precision weights only.
            fp16 = ["*/*.fp16.safetensors", "*/*.index.fp16.json"]
            folder = Path(snapshot_download(hub_id, allow_patterns=fp16, ignore_patterns=_HUB_UNWANTED[1:]))
    except Exception as error:  # the hub's client lets the exceptions of its transport through
        raise OSError(
            f"{hub_id} is neither a folder here nor a model that the hub hands out now ({first_line(error)}); "
            "check the name and the network, or give a folder"
        ) from error
    return folder
