"""Which schedulers there are, by the names of the command line, and the configuration that each has for a model.

One name stands for the class that a model's family runs: `ddim` is `CogVideoXDDIMScheduler` for CogVideoX, `euler` is
`FlowMatchEulerDiscreteScheduler` for a flow. What a model's own scheduler is says which. No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion.scheduler_fields import FIELDS, FLOW, PREDICTION_TYPES, SchedulerConfig, checked_scheduler_config

__all__ = [
    "PATCH_SIDE",
    "PREDICTION_TYPES",
    "SCHEDULERS",
    "SchedulerConfig",
    "check_folded",
    "checked_scheduler_config",
    "default_scheduler",
    "folded_shift",
    "known_schedulers",
    "parse_scheduler_config",
    "scheduler_config_at",
    "scheduler_for",
]

MAX_CONFIG_CHARS = 2**18  # a config with 1,000 trained betas has about 25,000

PATCH_SIDE = 2
"""Latent pixels of a token, each way, of the transformers whose shift depends on the size (FLUX, SD3)."""
_FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
_BY_BETAS = {
    "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
_BY_FLOW = {
    "euler": _FLOW_EULER,
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
_COGVIDEOX = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
SCHEDULERS = tuple(dict.fromkeys((*_BY_BETAS, *_COGVIDEOX, *_BY_FLOW)))
"""Every name on the command line. A new class also needs its keys in `FIELDS`."""


def parse_scheduler_config(text: str) -> SchedulerConfig:
    """Return the JSON object in `text`.

    Raises:
        ValueError: If it is too long, not JSON, or not an object.
    """
    if len(text) > MAX_CONFIG_CHARS:
        raise ValueError(f"scheduler config: {len(text)} characters, at most {MAX_CONFIG_CHARS} are read")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("scheduler config: not JSON") from error
    if not isinstance(config, dict):
        raise ValueError("scheduler config: not a JSON object")
    return config


def scheduler_config_at(text: str, latents_shape: Sequence[int]) -> SchedulerConfig:
    """Return a model's own scheduler configuration for one size: nothing in it depends on the size any more.

    Args:
        text: `ModelInfo.scheduler_config`.
        latents_shape: Of the generation; rows and columns stand last in every layout.

    Raises:
        ValueError: If it is malformed.
    """
    height, width = latents_shape[-2:]
    return folded_shift(parse_scheduler_config(text), (height // PATCH_SIDE) * (width // PATCH_SIDE))


def known_schedulers(own_class: str, config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the names of the schedulers that can drive a model, each with its class; the first is the default.

    Args:
        own_class: Class of the model's own scheduler, `ModelInfo.scheduler_class`.
        config: Its configuration.
    """
    if own_class in _COGVIDEOX.values():
        return _COGVIDEOX
    if not _is_flow(own_class, config):
        return _BY_BETAS
    # A flow's own solver is what its pair was published with.
    own = {name: class_name for name, class_name in _BY_FLOW.items() if class_name == own_class}
    return own | _BY_FLOW


def default_scheduler(own_class: str, config: Mapping[str, Any]) -> str:
    """Return the name of the scheduler that drives a model when nobody asks for another; see `known_schedulers`."""
    return next(iter(known_schedulers(own_class, config)))


def scheduler_for(
    name: str, config: Mapping[str, Any], *, own_class: str, noise_seed: int = 0
) -> tuple[str, SchedulerConfig]:
    """Return class name and configuration of scheduler `name` for a model with scheduler `config`.

    As `from_config` of diffusers does: the keys that both know are taken over, the rest of the
    model's keys belongs to another class and is left out. What the name says (solver, order) stands above the model's.
    A flow's shift is taken over by whatever key the class has for it.

    Args:
        name: One of `known_schedulers`.
        config: The model's own scheduler configuration; with a `folded_shift`, where the size decides it.
        own_class: The class that it belongs to.
        noise_seed: Seed of the generation, for a scheduler that adds noise.

    Raises:
        ValueError: If no such scheduler runs this model, or a value that it would take over is out of range.
    """
    known = known_schedulers(own_class, config)
    if name not in known:
        what = f"does not run this model ({own_class[:80]})" if name in SCHEDULERS else "is not known"
        raise ValueError(f"scheduler {name[:80]!r} {what}: choose one of {', '.join(known)}")
    class_name = known[name]
    taken = {key: config[key] for key, field in FIELDS[class_name].items() if key in config and not field.named}
    if _is_flow(own_class, config) and _FLOW_EULER in (class_name, own_class) and class_name != own_class:
        taken = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
        if class_name == _FLOW_EULER:
            taken["shift"] = config.get("flow_shift", 1.0)
        else:
            taken |= {"use_flow_sigmas": True, "prediction_type": FLOW, "flow_shift": _static_shift(config)}
    if "noise_seed" in FIELDS[class_name]:
        taken["noise_seed"] = noise_seed
    return class_name, checked_scheduler_config(class_name, taken)


def folded_shift(config: Mapping[str, Any], image_seq_len: int) -> SchedulerConfig:
    """Return a flow's configuration with the shift of one size, so that what drives a trajectory needs no size.

    Dynamic shifting draws a line from (`base_image_seq_len`, `base_shift`) to (`max_image_seq_len`, `max_shift`), as
    the pipelines of FLUX and SD3 do before they ask for timesteps; folded, both ends lie on what it says for this size.
    So it stays a configuration of diffusers' own, which gives the same timesteps there at any size, to the bit.

    Args:
        config: The model's own scheduler configuration. A static shift is left as it is.
        image_seq_len: Tokens of the picture: latent pixels over the pixels of a patch.

    Raises:
        ValueError: If a value is out of range.
    """
    if config.get("use_dynamic_shifting") is not True:
        return dict(config)
    first, last, low, high = (
        _flow_euler_value(config, key) for key in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    )
    if first == last:
        raise ValueError(f"scheduler config: base_image_seq_len and max_image_seq_len are both {first}")
    slope = (high - low) / (last - first)
    shift = image_seq_len * slope + (low - slope * first)
    return {**config, "base_shift": shift, "max_shift": shift}


def check_folded(config: Mapping[str, Any]) -> None:
    """Refuse a dynamic shift that `folded_shift` has not been over.

    Raises:
        ValueError: The shift still depends on the size.
    """
    if config["use_dynamic_shifting"] and config["base_shift"] != config["max_shift"]:
        raise ValueError(
            "scheduler config: use_dynamic_shifting is on, so the shift depends on the picture's size: "
            "it must be folded first (folded_shift)"
        )


def _is_flow(own_class: str, config: Mapping[str, Any]) -> bool:
    return own_class == _FLOW_EULER or config.get("use_flow_sigmas") is True


def _static_shift(config: Mapping[str, Any]) -> Any:
    """Return what a solver with `flow_shift` is given for a configuration of the flow's Euler."""
    checked = checked_scheduler_config(_FLOW_EULER, {key: config[key] for key in FIELDS[_FLOW_EULER] if key in config})
    if not checked["use_dynamic_shifting"]:
        return checked["shift"]
    check_folded(checked)
    return math.exp(checked["base_shift"]) if checked["time_shift_type"] == "exponential" else checked["base_shift"]


def _flow_euler_value(config: Mapping[str, Any], key: str) -> Any:
    field = FIELDS[_FLOW_EULER][key]
    return field.check(key, config.get(key, field.default))
