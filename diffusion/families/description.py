"""A model's description, put together from its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffusion.model import ModelInfo
from diffusion.pipeline_folder import canonical_json
from diffusion.scheduler_fields import FLOW, PREDICTION_TYPES

if TYPE_CHECKING:
    from diffusion.families.base import FamilyModel


def describe(model: FamilyModel, name: str) -> ModelInfo:
    """Return what the other end is told of a model; its network is loaded.

    Raises:
        ValueError: A part is missing or damaged, or predicts something unknown.
    """
    folder, scheduler = model.folder, model.scheduler_config()
    prediction_type = scheduler.get("prediction_type", model.default_prediction_type)
    known = (*PREDICTION_TYPES, FLOW)
    if prediction_type not in known:
        raise ValueError(f"{folder.path}: prediction_type {prediction_type!r} is not one of {', '.join(known)}")
    height, width = model.default_size
    # What pairs compare is the model's own VAE; that another one decodes is its user's choice.
    vae = model.own_vae
    return ModelInfo(
        name=name,
        fingerprint=folder.fingerprint(model.network_part, "diffusion_pytorch_model"),
        family=model.family,
        prediction_type=prediction_type,
        latent_channels=vae.latent_channels,
        layout=model.layout,
        vae_scale_factor=vae.scale_factor,
        vae_scaling_factor=vae.scaling_factor,
        vae_shift_factor=vae.shift_factor,
        vae_fingerprint=vae.fingerprint(),
        prompt_embeds_width=model.embeds_widths[0],
        pooled_prompt_embeds_width=model.embeds_widths[1],
        text_encoder_fingerprint=_joined([each.fingerprint() for each in model.text_encoders]),
        scheduler_class=str(scheduler.get("_class_name", "")),
        scheduler_config=canonical_json(scheduler),
        default_height=folder.recommended("height", height),
        default_width=folder.recommended("width", width),
        num_parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        default_guidance_scale=(
            model.default_guidance_scale if folder.guidance_scale is None else folder.guidance_scale
        ),
        **model.more_info(),
    )


def _joined(fingerprints: Sequence[str]) -> str:
    """Return one fingerprint for several parts; the only one as it is, and none for no part."""
    if len(fingerprints) < 2:
        return "".join(fingerprints)
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:16]
