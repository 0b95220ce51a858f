"""Measures published pairs: their models are built from their configurations, without weights (torch's meta device)."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.pairs.published import PAIRS, Pair, PublishedModel
from diffusion.compatibility import check_pair
from diffusion.families import FAMILIES
from diffusion.families.base import FamilyModel
from diffusion.loading import load_outline

_TOKENIZERS = {
    "CLIPTextModel": ("CLIPTokenizer", "vocab.json", 77),
    "CLIPTextModelWithProjection": ("CLIPTokenizer", "vocab.json", 77),
    "T5EncoderModel": ("T5TokenizerFast", "spiece.model", 512),
    "UMT5EncoderModel": ("T5TokenizerFast", "spiece.model", 512),
}


def measure(codecs: Mapping[str, float]) -> dict[str, Any]:
    """Return every pair's and model's figures.

    Args:
        codecs: By codec, wire bytes of float16 latents over their raw bytes.
    """
    models = {model.hub_id: model for pair in PAIRS.values() for model in (pair.cloud, pair.edge)}
    with tempfile.TemporaryDirectory() as root:
        built = {
            hub_id: outline(model, Path(root) / str(index)) for index, (hub_id, model) in enumerate(models.items())
        }
        return {
            "models": {hub_id: _about_model(built[hub_id], model) for hub_id, model in models.items()},
            "pairs": {
                name: _about_pair(pair, built[pair.cloud.hub_id], built[pair.edge.hub_id], codecs)
                for name, pair in PAIRS.items()
            },
        }


def outline(model: PublishedModel, folder: Path) -> FamilyModel:
    """Return a published model on torch's meta device, as this project loads its folder, which is written first."""
    folder.mkdir()
    write_folder(model, folder)
    return load_outline(folder)


def write_folder(model: PublishedModel, folder: Path) -> None:
    """Write a model's pipeline folder: the published configurations, and files of weights without any weights."""
    module, _, class_name = FAMILIES[model.pipeline].partition(":")
    family: type[FamilyModel] = getattr(importlib.import_module(module), class_name)
    index: dict[str, Any] = {"_class_name": model.pipeline}

    def add(part: str, library: str, class_name: str, files: Mapping[str, Any], weights: str = "") -> None:
        index[part] = [library, class_name]
        (folder / part).mkdir()
        for name, content in files.items():
            (folder / part / name).write_text(json.dumps(content))
        if weights:
            save_file({}, folder / part / f"{weights}.safetensors")

    network = "diffusion_pytorch_model"
    add(family.network_part, "diffusers", family.network_class, {"config.json": model.network}, network)
    add("vae", "diffusers", family.vae_classes[0], {"config.json": model.vae}, network)
    add("scheduler", "diffusers", model.scheduler["_class_name"], {"scheduler_config.json": model.scheduler})
    for number, (encoder, config) in enumerate(model.text_encoders, 1):
        suffix = "" if number == 1 else f"_{number}"
        tokenizer, vocabulary, length = _TOKENIZERS[encoder]
        add(f"text_encoder{suffix}", "transformers", encoder, {"config.json": config}, "model")
        files = {"tokenizer_config.json": {"model_max_length": length}, vocabulary: {}}
        add(f"tokenizer{suffix}", "transformers", tokenizer, files)
    (folder / "model_index.json").write_text(json.dumps(index))


def _about_model(built: FamilyModel, model: PublishedModel) -> dict[str, Any]:
    return {
        "family": built.family,
        "licence": model.licence,
        "said_parameters": model.said_parameters * 1e9,
        "network": _size(built.network),
        "text_encoders": _sum([_size(each.network) for each in built.text_encoders]),
        "vae": _size(built.vae.network),
    }


def _size(network: torch.nn.Module) -> dict[str, int]:
    parameters = list(network.parameters())
    return {
        "parameters": sum(each.numel() for each in parameters),
        "bytes": sum(each.numel() * each.element_size() for each in parameters),
    }


def _sum(sizes: list[dict[str, int]]) -> dict[str, int]:
    return {key: sum(size[key] for size in sizes) for key in ("parameters", "bytes")}


def _about_pair(pair: Pair, cloud: FamilyModel, edge: FamilyModel, codecs: Mapping[str, float]) -> dict[str, Any]:
    verdict = check_pair(cloud.info, edge.info, text_encoder="own")
    shape = cloud.latents_shape(0, 0, 1)
    raw = math.prod(shape) * cloud.dtype.itemsize
    return {
        "cloud": pair.cloud.hub_id,
        "edge": pair.edge.hub_id,
        "refusal": verdict.refusal,
        "warnings": [line for line in verdict.warnings if "fingerprint" not in line],
        "edge_takes_clouds_embeddings": check_pair(cloud.info, edge.info, text_encoder="cloud").refusal is None,
        "paper": None if pair.paper is None else dict(pair.paper),
        "default_size": [cloud.info.default_height, cloud.info.default_width, cloud.info.default_num_frames],
        "latents_shape": list(shape),
        "latents_bytes": {"raw": raw} | {codec: round(raw * ratio) for codec, ratio in codecs.items()},
    }
