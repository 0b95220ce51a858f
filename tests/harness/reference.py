"""Reference numbers: the recorded cases, and the same arithmetic in one process without any network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from diffusion.noise import draw_noise
from diffusion.predictors import make_predictor
from diffusion.schedulers import Stepper, parse_scheduler_config, scheduler_for
from diffusion.trajectory import Trajectory
from wire.messages import Array, Plan

SD_TINY = Path(__file__).resolve().parents[1] / "data" / "sd-tiny"
SDXL_TINY = SD_TINY.with_name("sdxl-tiny")
COGVIDEOX_TINY = SD_TINY.with_name("cogvideox-tiny")
CLOUD_MODEL, EDGE_MODEL = SD_TINY / "cloud", SD_TINY / "edge"
LATENTS_SHAPE = (1, 4, 16, 16)
TOLERANCE = 1e-4
"""Largest difference over the reference's standard deviation; see tests/data/README.md."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded case, with what the edge client has to be told."""

    name: str
    mode: str
    prompt: str
    negative_prompt: str
    guidance_scale: float
    num_inference_steps: int
    initial_latents: Path
    plan: dict[str, Any]
    step_sources: str
    final_latents: Array

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `EdgeClient.generate`."""
        return {
            "mode": self.mode,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
            "initial_latents": self.initial_latents,
            **self.plan,
        }

    @property
    def arguments(self) -> list[str]:
        """Arguments for `edge-client generate`."""
        options = {name: value for name, value in self.options.items() if value != ""}
        words = [[f"--{name.replace('_', '-')}", str(value)] for name, value in options.items()]
        return [self.prompt, *(word for pair in words for word in pair)]


def read_cases(folder: Path = SD_TINY) -> dict[str, Case]:
    """Return the recorded cases of a pair by name."""
    return {raw["name"]: _case(folder, raw) for raw in json.loads((folder / "cases.json").read_text())}


def _case(folder: Path, raw: dict[str, Any]) -> Case:
    plan_keys = ("warmup_steps", "skip_interval", "smoothing", "handoff_step")
    return Case(
        name=raw["name"],
        mode=raw["mode"],
        prompt=raw["prompt"],
        negative_prompt=raw["negative_prompt"] or "",
        guidance_scale=raw["guidance_scale"],
        num_inference_steps=raw["num_inference_steps"],
        initial_latents=folder / raw["initial_latents"],
        plan={key: raw[key] for key in plan_keys if raw[key] is not None},
        step_sources=raw["step_sources"],
        final_latents=np.load(folder / raw["final_latents"]),
    )


def distance(latents: Array, reference: Array) -> float:
    """Return the largest difference over the reference's standard deviation."""
    return float(np.abs(latents - reference).max() / reference.std())


class ReferencePair:
    """Both tiny models in this process, to run any sequence of step sources by hand."""

    def __init__(self, cloud: Path = CLOUD_MODEL, edge: Path = EDGE_MODEL) -> None:
        self._models = {
            "C": load_model(cloud, device="cpu", dtype="float32"),
            "e": load_model(edge, device="cpu", dtype="float32"),
        }

    @torch.inference_mode()
    def final_latents(
        self,
        step_sources: str,
        *,
        prompt: str,
        guidance_scale: float,
        seed: int,
        plan: Plan,
        num_images: int = 1,
        scheduler: str = "ddim",
        restart_step: int = 0,
    ) -> Array:
        """Return the latents after the steps that `step_sources` spells, from the noise of `seed`.

        At `restart_step` a multistep solver goes on without its history.
        """
        cloud = self._models["C"]
        own_config = parse_scheduler_config(cloud.info.scheduler_config)
        class_name, config = scheduler_for(scheduler, own_config, own_class=cloud.info.scheduler_class, noise_seed=seed)
        stepper = Stepper(class_name, config, len(step_sources))
        shape = cloud.latents_shape(0, 0, num_images)
        trajectory = Trajectory(
            draw_noise(shape, seed) * stepper.schedule.init_noise_sigma,
            stepper,
            predictor=make_predictor(
                plan.predictor, stepper.schedule, prediction_type=stepper.prediction_type, smoothing=plan.smoothing
            ),
        )
        for index, letter in enumerate(step_sources):
            if index == restart_step:
                stepper.load_state({}, step_index=index)
            if letter == "x":
                trajectory.extrapolate()
            else:
                _advance(trajectory, self._models[letter], prompt, guidance_scale)
        return trajectory.latents.numpy()


def _advance(trajectory: Trajectory, model: Model, prompt: str, guidance_scale: float) -> None:
    (prediction,) = model.evaluate(
        [
            Evaluation(
                latents=trajectory.model_input(),
                timestep=trajectory.timestep,
                conditioning=model.encode_prompt(prompt, guided=guidance_scale > 1),
                guidance_scale=guidance_scale,
                guidance_rescale=0.0,
            )
        ]
    )
    trajectory.advance(prediction, prediction_type=model.info.prediction_type)
