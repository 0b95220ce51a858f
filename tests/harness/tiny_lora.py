"""A LoRA of random weights for a tiny pipeline, written by diffusers and peft."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from bench.parity import stock_pipeline

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def write_lora(folder: Path, path: Path, *, with_text_encoder: bool = False, rank: int = 2) -> Path:
    """Write a LoRA that changes every attention layer of a pipeline folder's network; return its path."""
    pipeline = stock_pipeline(folder)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    layers = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        for name, modules in ((part, ATTENTION), ("text_encoder", ["q_proj", "v_proj"])):
            if name == part or with_text_encoder:
                module = getattr(pipeline, name)
                module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=modules))
                layers[f"{name}_lora_layers"] = get_peft_model_state_dict(module)
        type(pipeline).save_lora_weights(path.parent, weight_name=path.name, **layers)
    return path
