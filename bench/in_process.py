"""The same plan with both models in one process and no network: what the service path is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.measures import make_measure
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.noise import draw_noise
from diffusion.predictors import COMPANIONS, Predictor, make_predictor
from diffusion.schedulers import Stepper, scheduler_for
from diffusion.trajectory import StepResult, Trajectory, denoise
from orchestrator.refresh import RefreshPolicy, make_refresh
from wire.messages import Plan, Source


@dataclass(frozen=True, kw_only=True)
class InProcessPair:
    """Both models of a pair, driven by the cloud's scheduler."""

    cloud: Model
    edge: Model

    def generate(
        self,
        plan: Plan,
        prompt: str,
        *,
        seed: int,
        guidance_scale: float,
        on_step: Callable[[StepResult], None] = lambda result: None,
    ) -> Tensor:
        """Return the final latents `[1, C, H, W]` of a plan; `on_step` is told of each of the cloud's steps."""
        guided = guidance_scale > 1.0
        name, config = scheduler_for("ddim", json.loads(self.cloud.info.scheduler_config))
        stepper = Stepper(name, config, plan.num_inference_steps, self.cloud.device)
        noise = draw_noise(self.cloud.latents_shape(0, 0, 1), seed) * stepper.schedule.init_noise_sigma
        refresh = make_refresh(plan)
        trajectory = _start(plan, refresh, stepper, noise, self.cloud.dtype)
        prediction_type = stepper.prediction_type
        measure = (
            make_measure(refresh.measure, trajectory, prediction_type=prediction_type) if refresh.measure else None
        )
        conditioning = self.cloud.encode_prompt(prompt, guided=guided)
        for result in denoise(
            trajectory,
            lambda at: _evaluate(self.cloud, at, conditioning, guidance_scale),
            lambda step_index: refresh.decide(step_index, measure.value() if measure else None) is Source.CLOUD,
            stop_step=plan.handoff_step,
            prediction_type=self.cloud.info.prediction_type,
        ):
            if measure:
                measure.observe(result)
            on_step(result)
        if trajectory.done:
            return trajectory.latents
        conditioning = self.edge.encode_prompt(prompt, guided=guided)
        tail = Trajectory(trajectory.latents, stepper, start_step=plan.handoff_step, dtype=self.edge.dtype)
        for _ in denoise(
            tail,
            lambda at: _evaluate(self.edge, at, conditioning, guidance_scale),
            lambda _: True,
            stop_step=plan.num_inference_steps,
            prediction_type=self.edge.info.prediction_type,
        ):
            pass
        return tail.latents


def _start(plan: Plan, refresh: RefreshPolicy, stepper: Stepper, latents: Tensor, dtype: torch.dtype) -> Trajectory:
    """Return a trajectory with the plan's predictor, and its companion if the policy measures the embedded error."""

    def predictor(name: str) -> Predictor:
        prediction_type = stepper.prediction_type
        return make_predictor(name, stepper.schedule, prediction_type=prediction_type, smoothing=plan.smoothing)

    return Trajectory(
        latents,
        stepper,
        predictor=predictor(plan.predictor),
        companion=predictor(COMPANIONS[plan.predictor]) if refresh.measure == "embedded-error" else None,
        dtype=dtype,
    )


def _evaluate(model: Model, at: Trajectory, conditioning: Conditioning, guidance_scale: float) -> Tensor:
    evaluation = Evaluation(
        latents=at.model_input(), timestep=at.timestep, conditioning=conditioning, guidance_scale=guidance_scale
    )
    (prediction,) = model.evaluate([evaluation])
    return prediction
