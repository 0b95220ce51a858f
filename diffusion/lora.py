"""LoRA: small changes of a model's weights, from a file of their own, fused when the model is loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion.families.base import FamilyModel
from diffusion.lora_file import Lora
from diffusion.pipeline_folder import quiet_libraries
from diffusion.weight_files import first_line

# One of the two matrices of a layer, as the trainers name it.
_FIRST_MATRICES = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_A.default.weight")
_TEXT_ENCODER_PREFIXES = ("text_encoder", "lora_te")


def fuse_loras(model: FamilyModel, loras: Sequence[Lora]) -> None:
    """Change a model's weights for good, one LoRA after the other, by diffusers' own loaders.

    The fingerprints of what is changed tell it: a model with a LoRA is another one.

    Raises:
        ValueError: peft is not installed, or a file is damaged, for another base, or for a part that the model lacks.
    """
    if loras and importlib.util.find_spec("peft") is None:
        raise ValueError("--lora needs peft: pip install 'ecdiff[lora]'")
    for lora in loras:
        changes_text = _fuse(model, lora)
        info = replace(model.info, fingerprint=_changed(model.info.fingerprint, lora))
        if changes_text:
            encoder = _changed(info.text_encoder_fingerprint, lora)
            info = replace(info, text_encoder_fingerprint=encoder)
        model.info = info


def _fuse(model: FamilyModel, lora: Lora) -> bool:
    """Fuse one; return whether it changes a text encoder."""
    names = _read_names(lora.path)
    changes_text = any(name.startswith(_TEXT_ENCODER_PREFIXES) for name in names)
    if changes_text and not model.text_encoders:
        raise ValueError(f"{lora.path} changes a text encoder, and {model.folder.path} has none")
    from diffusers.utils import logging as diffusers_logging

    pipeline = _Parts.of(model, with_text_encoders=changes_text)
    try:
        with quiet_libraries():
            diffusers_logging.set_verbosity(logging.CRITICAL)  # what does not fit it logs as an error, and raises
            pipeline.load_lora_weights(
                str(lora.path.parent),
                weight_name=lora.path.name,
                use_safetensors=True,
                local_files_only=True,
                adapter_name="lora",
            )
    except Exception as error:  # the libraries raise whatever a foreign file makes them stumble over
        raise ValueError(
            f"{lora.path} does not fit {model.folder.path}: it is for another base ({first_line(error).rstrip(':')})"
        ) from error
    wanted = sum(name.endswith(_FIRST_MATRICES) for name in names)
    found = sum(hasattr(each, "lora_A") for part in pipeline.components.values() for each in part.modules())
    if not 0 < wanted <= found:
        raise ValueError(
            f"{lora.path} does not fit {model.folder.path}: it changes {wanted} layers, of which {found} are there; it "
            "is for another base"
        )
    with quiet_libraries():
        pipeline.fuse_lora(components=list(pipeline.components), lora_scale=lora.scale)
        pipeline.unload_lora_weights()
    for part in pipeline.components.values():
        part.eval().requires_grad_(False)
    return changes_text


class _Parts:
    """What diffusers' loaders want of a pipeline: the parts that a LoRA may change, by their names."""

    hf_device_map = None

    @staticmethod
    def of(model: FamilyModel, *, with_text_encoders: bool) -> Any:
        """Return the family's own loader for a model's parts."""
        import diffusers

        with quiet_libraries():
            from diffusers.loaders.lora_base import LoraBaseMixin

            ancestors = getattr(diffusers, model.folder.pipeline_class).__mro__
        loader = next(
            each
            for each in ancestors
            if issubclass(each, LoraBaseMixin) and not issubclass(each, diffusers.DiffusionPipeline)
        )
        parts = {model.network_part: model.network}
        if with_text_encoders:
            changeable = [name for name in loader._lora_loadable_modules if name != model.network_part]
            parts |= {name: each.network for name, each in zip(changeable, model.text_encoders, strict=False)}
        pipeline: Any = type("Parts", (_Parts, loader), {"components": parts})()
        for name in loader._lora_loadable_modules:
            setattr(pipeline, name, parts.get(name))
        return pipeline


def _read_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}; fetch the LoRA again") from error


def _changed(fingerprint: str, lora: Lora) -> str:
    digest = hashlib.sha256(f"{fingerprint}:{lora.scale!r}:".encode())
    digest.update(hashlib.sha256(lora.path.read_bytes()).digest())
    return digest.hexdigest()[:16]
