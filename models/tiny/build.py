"""Which tiny models there are, and how one is written. A new family: one module, one line in `FAMILIES`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion.pipeline_folder import quiet_libraries
from models.tiny import cogvideox, flux, sd, sd3, sdxl, wan

FAMILIES: dict[str, Callable[..., Any]] = {
    "cogvideox": cogvideox.pipeline,
    "cogvideox-1.5": functools.partial(cogvideox.pipeline, patch_size_t=2),
    "cogvideox-2b": functools.partial(cogvideox.pipeline, rotary=False),
    "flux": flux.pipeline,
    "flux-schnell": functools.partial(flux.pipeline, guidance_embeds=False),
    "sd": sd.pipeline,
    "sd3": sd3.pipeline,
    "sdxl": sdxl.pipeline,
    "wan": wan.pipeline,
}
"""Name -> builder of a diffusers pipeline with so many `num_layers`."""

RECOMMENDED = {
    "flux": {"_height": 128, "_width": 128},
    "flux-schnell": {"_height": 128, "_width": 128},
    "wan": {"_height": 64, "_width": 96, "_num_frames": 9},
}
"""What a folder says of its size (`PipelineFolder.recommended`), where the family's own is the published models'."""

LAYERS = {"large": 2, "small": 1}
_SPREAD = 0.1


def build(family: str, folder: Path, *, size: str = "large", seed: int = 0) -> None:
    """Write a tiny random-weight pipeline folder; the same call writes the same weights.

    Only the network's weights follow from size and seed: two models of one family share encoders and VAE.

    Args:
        family: One of `FAMILIES`.
        folder: Where to.
        size: One of `LAYERS`.
        seed: Of the network's weights.
    """
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        pipeline = FAMILIES[family](num_layers=LAYERS[size])
        for index, part in enumerate(sorted(pipeline.components)):
            module = pipeline.components[part]
            if isinstance(module, torch.nn.Module):
                _fill(module, 1000 * (seed + 1) + LAYERS[size] if part in ("transformer", "unet") else index)
        pipeline.save_pretrained(folder)
    index_file = folder / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | RECOMMENDED.get(family, {}), indent=2) + "\n")


def _fill(module: torch.nn.Module, seed: int) -> None:
    """Draw all weights, those that start as zeros too: a network that answers zero would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator) * _SPREAD
            parameter.copy_(drawn + 1.0 if parameter.dim() == 1 and name.endswith("weight") else drawn)
