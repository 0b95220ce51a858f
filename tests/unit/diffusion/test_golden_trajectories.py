"""Every recorded case of the EC-Diff authors' code, in this process (see tests/data/README.md)."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.loading import load_model
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.predictors import make_predictor
from diffusion.schedulers import Stepper, parse_scheduler_config, scheduler_for
from diffusion.trajectory import StepResult, Trajectory, denoise

DATA = Path(__file__).parents[2] / "data"
FAMILIES = ("sd", "sdxl")
CASES = [
    pytest.param(family, case, id=f"{family}-{case['name']}")
    for family in FAMILIES
    for case in json.loads((DATA / f"{family}-tiny" / "cases.json").read_text())
]
TOLERANCE = 1e-4


@cache
def pair_of(family: str) -> dict[str, Model]:
    return {name: load_model(DATA / f"{family}-tiny" / name, device="cpu") for name in ("cloud", "edge")}


def run(family: str, case: dict) -> tuple[list[StepResult], str]:
    pair, folder = pair_of(family), DATA / f"{family}-tiny"
    steps = case["num_inference_steps"]
    handoff = {"cloud": steps, "edge": 0}.get(case["mode"], case["handoff_step"])
    warmup, skip = case["warmup_steps"] or steps, case["skip_interval"] or 0
    lead = pair["edge" if case["mode"] == "edge" else "cloud"]
    config = parse_scheduler_config(lead.info.scheduler_config)
    stepper = Stepper(*scheduler_for("ddim", config, own_class="DDIMScheduler"), steps, "cpu")
    predictor = None
    if case["mode"] == "ecdiff":
        predictor = make_predictor(
            "ecdiff", stepper.schedule, prediction_type=stepper.prediction_type, smoothing=case["smoothing"]
        )
    noise = torch.from_numpy(np.load(folder / case["initial_latents"]))
    trajectory = Trajectory(noise * stepper.schedule.init_noise_sigma, stepper, predictor=predictor)
    guidance = case["guidance_scale"]
    conditioning = lead.encode_prompt(case["prompt"], case["negative_prompt"] or "", guided=guidance > 1)

    def evaluate_with(model: Model):
        return lambda now: evaluate(model, now, conditioning, guidance)

    def is_real(step: int) -> bool:
        return step < warmup or (step + 1 - warmup) % (skip + 1) == 0

    results = list(denoise(trajectory, evaluate_with(pair["cloud"]), is_real, stop_step=handoff))
    sources = "".join("C" if result.evaluated else "x" for result in results)
    tail = list(denoise(trajectory, evaluate_with(pair["edge"]), lambda step: True, stop_step=steps))
    return results + tail, sources + "e" * len(tail)


def evaluate(model: Model, now: Trajectory, conditioning: Conditioning, guidance: float) -> torch.Tensor:
    return model.evaluate(
        [
            Evaluation(
                latents=now.model_input(), timestep=now.timestep, conditioning=conditioning, guidance_scale=guidance
            )
        ]
    )[0]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_final_latents_and_sources_match_the_reference(family, case):
    results, sources = run(family, case)
    reference = np.load(DATA / f"{family}-tiny" / case["final_latents"])
    assert sources == case["step_sources"]
    assert np.abs(results[-1].latents.numpy() - reference).max() / reference.std() < TOLERANCE


@pytest.mark.parametrize(("family", "case"), [each for each in CASES if each.values[1]["name"] == "ecdiff"])
def test_every_step_of_the_recorded_trajectory_matches(family, case):
    recorded = np.load(DATA / f"{family}-tiny" / case["trajectory"])
    results, _ = run(family, case)
    scales = {name: max(1.0, float(recorded[name].std())) for name in ("latents", "noise")}
    for index, result in enumerate(results):
        assert result.step_index == index
        assert np.abs(result.latents.numpy() - recorded["latents"][index]).max() < TOLERANCE * scales["latents"]
        assert np.abs(result.noise_pred.numpy() - recorded["noise"][index]).max() < TOLERANCE * scales["noise"]
