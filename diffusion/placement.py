"""A scheduler of diffusers with its steps placed, and what its noise levels are."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from diffusion.scheduler_config import check_folded
from diffusion.scheduler_fields import SchedulerConfig

# Above it the square of a noise level, which the solvers take, leaves float32.
MAX_NOISE_TO_SIGNAL = 1e9
# What every known model was trained with.
_MAX_KEPT_TIMESTEPS = 1000
_BY_ABAR = ("DDIMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
_FLOW_EULER = "FlowMatchEulerDiscreteScheduler"


def placed(class_name: str, config: SchedulerConfig, num_inference_steps: int) -> Any:
    """Return a scheduler of diffusers with its timesteps set, nobody else's.

    diffusers takes milliseconds to make one, on a service's event loop, and most sessions ask for the same: those are
    copied. None that is longer than models are is kept: strangers choose the configurations, and memory is not theirs.
    """
    config = {key: value for key, value in config.items() if key != "noise_seed"}  # of one generation, and the step's
    if config["num_train_timesteps"] > _MAX_KEPT_TIMESTEPS:
        return _place_steps(class_name, config, num_inference_steps)
    return copy.deepcopy(_kept_steps(class_name, json.dumps(config), num_inference_steps))


@lru_cache(maxsize=64)
def _kept_steps(class_name: str, config: str, num_inference_steps: int) -> Any:
    return _place_steps(class_name, json.loads(config), num_inference_steps)


def _place_steps(class_name: str, config: SchedulerConfig, num_inference_steps: int) -> Any:
    if class_name == _FLOW_EULER:
        return _place_flow(config, num_inference_steps)
    scheduler = getattr(diffusers, class_name).from_config(config)
    # Logarithms are taken of noise levels that the other end's betas may make 0; `_solver_levels` refuses those.
    with np.errstate(all="ignore"):
        scheduler.set_timesteps(num_inference_steps)
    # With "trailing" spacing some step counts get one more by rounding, -1, which is no timestep.
    scheduler.timesteps = scheduler.timesteps[:num_inference_steps]
    if class_name not in _BY_ABAR:
        scheduler.sigmas = torch.cat([scheduler.sigmas[:num_inference_steps], scheduler.sigmas[-1:]])
    return scheduler


def _place_flow(config: SchedulerConfig, num_inference_steps: int) -> Any:
    check_folded(config)
    known = {key: value for key, value in config.items() if key != "timestep_spacing"}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(known)
    sigmas: Any = None
    if config["timestep_spacing"] == "trailing":
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    mu = config["base_shift"] if config["use_dynamic_shifting"] else None
    # A shift from the other end may divide by 0; `levels` refuses what comes of it.
    with np.errstate(all="ignore"):
        scheduler.set_timesteps(num_inference_steps, sigmas=sigmas, mu=mu)
    return scheduler


def levels(class_name: str, config: SchedulerConfig, scheduler: Any) -> tuple[Tensor, Tensor]:
    """Return signal and noise level of each step, float64, in the scheduler's scaling.

    Raises:
        ValueError: They are not between no signal and no noise, or do not fall where a step divides by them.
    """
    if class_name in _BY_ABAR:
        return _abar_levels(scheduler)
    if class_name == _FLOW_EULER or config.get("use_flow_sigmas"):
        return _flow_levels(scheduler, has_signal=class_name != _FLOW_EULER)
    return _solver_levels(class_name, scheduler)


def _abar_levels(scheduler: Any) -> tuple[Tensor, Tensor]:
    abar = scheduler.alphas_cumprod[scheduler.timesteps].double()
    # A step divides by its noise, and by the signal after it; NaN is neither.
    if not bool((abar[0] >= 0) & (abar[-1] < 1) & (abar.diff() > 0).all()):
        raise ValueError("scheduler config: the betas give signal levels that do not rise between 0 and 1")
    return abar.sqrt(), (1 - abar).sqrt()


def _flow_levels(scheduler: Any, *, has_signal: bool) -> tuple[Tensor, Tensor]:
    """Return levels of (1 - sigma) * x0 + sigma * noise; the solvers take the logarithm of both."""
    sigmas = scheduler.sigmas.double()
    within = sigmas[0] < 1 if has_signal else sigmas[0] <= 1
    if not bool(within & (sigmas.diff() < 0).all()):  # NaN is neither
        raise ValueError("scheduler config: the shift gives noise levels that do not fall from step to step")
    return (1 - sigmas)[:-1], sigmas[:-1]


def _solver_levels(class_name: str, scheduler: Any) -> tuple[Tensor, Tensor]:
    """Return the levels of a solver for which diffusers keeps noise over signal."""
    ratios = scheduler.sigmas.double()
    if not bool((ratios[0] <= MAX_NOISE_TO_SIGNAL) & (ratios.diff() < 0).all()):  # NaN is neither
        raise ValueError("scheduler config: the betas give noise levels that do not fall from step to step")
    # Euler's latents are x0 + ratio * noise (arXiv 2206.00364, table 1, "VE"); the others' preserve variance.
    alphas = torch.ones_like(ratios) if class_name == "EulerDiscreteScheduler" else (1 + ratios**2).rsqrt()
    return alphas[:-1], (alphas * ratios)[:-1]
