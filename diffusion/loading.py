from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusion.families import FAMILIES
from diffusion.families.base import FamilyModel
from diffusion.locating import locate
from diffusion.lora import fuse_loras
from diffusion.lora_file import Lora
from diffusion.model import Model
from diffusion.offload import Offload
from diffusion.pipeline_folder import PipelineFolder
from diffusion.vae_choice import OWN_VAE, VaeChoice

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    path_or_id: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: Sequence[Lora] = (),
    offload: str = "none",
    vae: VaeChoice = OWN_VAE,
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
        vae: What decodes, where that is not the model's own, and how.

    Raises:
        ValueError: If it is no model that can be run here, or a LoRA does not fit; the text says what is wrong with it.
        OSError: If there is no such folder and it cannot be fetched.
    """
    where = resolve_device(device)
    parts = Offload(offload, where)
    model = _family_model(path_or_id, parts, device=where, dtype=resolve_dtype(dtype, where), vae=vae)
    fuse_loras(model, loras)
    parts.begin()
    return model


def load_outline(
    path_or_id: str | Path, *, dtype: torch.dtype = torch.float16, vae: VaeChoice = OWN_VAE
) -> FamilyModel:
    """Load a model's shapes on torch's meta device: every part as configured, checked as `load_model` does.

    Of the weights only the files are looked at, so that the model can be described and counted, not asked.

    Args:
        path_or_id: As for `load_model`.
        dtype: What it would run in.
        vae: As for `load_model`.

    Raises:
        ValueError: As `load_model`.
        OSError: Likewise.
    """
    meta = torch.device("meta")
    return _family_model(path_or_id, Offload("none", meta), device=meta, dtype=dtype, vae=vae)


def _family_model(
    path_or_id: str | Path, parts: Offload, *, device: torch.device, dtype: torch.dtype, vae: VaeChoice
) -> FamilyModel:
    path = locate(path_or_id)
    folder = PipelineFolder(path, parts)
    if folder.pipeline_class not in FAMILIES:
        raise ValueError(
            f"{path} is a {folder.pipeline_class or 'pipeline without a class'}; supported: {', '.join(FAMILIES)}"
        )
    module, _, class_name = FAMILIES[folder.pipeline_class].partition(":")
    family = getattr(importlib.import_module(module), class_name)
    name = path.resolve().name if Path(path_or_id).is_dir() else str(path_or_id)
    model: FamilyModel = family(folder, name=name, device=device, dtype=dtype, vae=vae)
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
