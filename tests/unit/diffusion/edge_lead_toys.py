"""Closed-form models whose cloud and edge differ in what a test says, and one trajectory with both."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.edge_lead import EdgeLead, make_edge_lead
from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.schedulers import Stepper, scheduler_for
from diffusion.trajectory import Trajectory, denoise

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = ["ddim", "dpmpp-2m", "unipc", "euler"]
SHAPE = (2, 4, 4, 4)
STEPS = 12

Ask = Callable[[Tensor, float], Tensor]


def stepper(name: str = "ddim", **changes: object) -> Stepper:
    config = SD | {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": True} | changes
    return Stepper(*scheduler_for(name, config, own_class="PNDMScheduler"), STEPS)


def gaussian(ours: Stepper, deviation: float = 0.5, target: str | None = None) -> Ask:
    """Return E[x0 | x] = x * alpha * S^2 / (alpha^2 S^2 + sigma^2) as a network of type `target` would say it."""
    schedule, target = ours.schedule, target or ours.prediction_type

    def evaluate(model_input: Tensor, timestep: float) -> Tensor:
        i = schedule.timesteps.index(timestep)
        norm = math.hypot(schedule.alphas[i], schedule.sigmas[i])  # networks see latents that preserve variance
        alpha, sigma = schedule.alphas[i] / norm, schedule.sigmas[i] / norm
        x = model_input.float()
        denoised = x * alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return convert_prediction(denoised, x, source="sample", target=target, alpha=alpha, sigma=sigma)

    return evaluate


def less(evaluate: Ask, missing: Callable[[float], Tensor]) -> Ask:
    """Return a model that leaves something out that depends on time alone."""
    return lambda model_input, timestep: evaluate(model_input, timestep) - missing(timestep)


def lead_of(ours: Stepper, evaluate: Ask, **options: object) -> EdgeLead:
    return make_edge_lead(evaluate, ours, **{"prediction_type": ours.prediction_type, **options})


def cloud_leads(ours: Stepper, cloud: Ask, lead: EdgeLead | None, handoff_step: int) -> Trajectory:
    """Run the cloud's steps, every one of them real, with the edge as the shadow."""
    noise = draw_noise(SHAPE, 3) * ours.schedule.init_noise_sigma
    trajectory = Trajectory(noise, ours)
    for result in denoise(trajectory, asks(cloud), lambda step: True, stop_step=handoff_step):
        if lead is not None:
            lead.shadow(result.step_index, result.noise_pred, result.latents_before)
    return trajectory


def asks(evaluate: Ask) -> Callable[[Trajectory], Tensor]:
    return lambda at: evaluate(at.model_input(), at.timestep)


def all_cloud(name: str = "ddim", **changes: object) -> Tensor:
    ours = stepper(name, **changes)
    return cloud_leads(ours, gaussian(ours), None, STEPS).latents


def finish(lead: EdgeLead, at: Trajectory, cloud: Ask, corrections: frozenset[int] | set[int] = frozenset()) -> Tensor:
    """Let the edge lead to the end, with the cloud's answer at some steps."""
    lead.take_over(at)
    while lead.run_to_call(lambda step, disagreement: step in corrections, lambda result: None):
        lead.think()
        lead.advance(asks(cloud)(at))
    return at.latents


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
