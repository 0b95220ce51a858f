"""A pair of closed-form models of normal pictures, and the plans that its tests run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.model import Conditioning, Evaluation, ModelInfo
from diffusion.prediction_types import convert_prediction
from orchestrator.in_process import InProcessPair
from wire.edge_plan import EdgePlan
from wire.messages import Plan

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": True,
}
ALPHAS_BAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SCHEDULERS = ["ddim", "dpmpp-2m", "unipc", "euler"]
PROMPTS = ["0.2", "-1.5", "3.0"]
STEPS = 16


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A `Model` whose pictures for the prompt "m" are normal around m: E[x0 | x] is the prediction.

    Attributes:
        deviation: Of the pictures.
        offset: Added to every prompt's m.
        target: Prediction type.
        bad_below: Timestep from which on, downwards, it answers with NaN.
    """

    deviation: float = 0.5
    offset: float = 0.0
    target: str = "epsilon"
    bad_below: float = -1.0
    device = torch.device("cpu")
    dtype = torch.float32

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="gaussian",
            fingerprint="",
            family="sd",
            prediction_type=self.target,
            latent_channels=2,
            layout="BCHW",
            vae_scale_factor=8,
            vae_scaling_factor=1.0,
            vae_shift_factor=0.0,
            vae_fingerprint="",
            text_encoder_fingerprint="",
            scheduler_class="DDIMScheduler",
            scheduler_config=json.dumps(CONFIG | {"prediction_type": self.target}),
            default_height=32,
            default_width=32,
            num_parameters=0,
            dtype="float32",
            device="cpu",
        )

    def encode_prompt(self, prompt: str, negative_prompt: str = "", *, guided: bool) -> Conditioning:
        return Conditioning(prompt_embeds=torch.full((1, 1, 1), float(prompt) + self.offset))

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        return [self._evaluate(each) for each in evaluations]

    def _evaluate(self, asked: Evaluation) -> Tensor:
        abar = float(ALPHAS_BAR[round(asked.timestep)])
        alpha, sigma, variance = abar**0.5, (1 - abar) ** 0.5, self.deviation**2
        mean, x = asked.conditioning.prompt_embeds[..., None], asked.latents
        denoised = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        answer = convert_prediction(denoised, x, source="sample", target=self.target, alpha=alpha, sigma=sigma)
        return answer * math.nan if asked.timestep < self.bad_below else answer

    def decode(self, latents: Tensor) -> NDArray[Any]:
        raise NotImplementedError("these tests look at latents")

    def latents_shape(self, height: int, width: int, num_images: int) -> tuple[int, int, int, int]:
        return (num_images, 2, 4, 4)


CLOUD = Gaussian()
EDGE = Gaussian(deviation=0.6, offset=0.1)


def a_pair(edge: Gaussian = EDGE, prompts: Sequence[str] = PROMPTS, scheduler: str = "ddim", **changes: Any):
    seeds = [PROMPTS.index(prompt) for prompt in prompts]
    cloud = changes.get("cloud", CLOUD)
    return InProcessPair(cloud, edge, prompts, seeds, guidance_scale=1.0, scheduler=scheduler)


def split(handoff_step: int = STEPS, **changes: Any) -> Plan:
    return Plan(num_inference_steps=STEPS, handoff_step=handoff_step, **changes)


def spaced(handoff_step: int, real_steps: Sequence[int] = (0, 1, 3, 5, 8, 11)) -> Plan:
    return split(handoff_step, refresh="listed", real_steps=tuple(real_steps), predictor="linear")


def error(pair: InProcessPair, plan: Plan, edge_plan: EdgePlan | None = None) -> float:
    reference = pair.generate(split()).latents
    return float((pair.generate(plan, edge_plan).latents - reference).norm() / reference.norm())
