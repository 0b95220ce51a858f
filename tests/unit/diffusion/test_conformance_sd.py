"""Every recorded case of the EC-Diff authors' code, in this process (see tests/data/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.loading import load_model
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.predictors import make_predictor
from diffusion.schedulers import Stepper, parse_scheduler_config, scheduler_for
from diffusion.trajectory import StepResult, Trajectory, denoise

DATA = Path(__file__).parents[2] / "data" / "sd-tiny"
CASES = json.loads((DATA / "cases.json").read_text())
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pair() -> dict[str, Model]:
    return {name: load_model(DATA / name, device="cpu") for name in ("cloud", "edge")}


def run(case: dict, pair: dict[str, Model]) -> tuple[list[StepResult], str]:
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
    noise = torch.from_numpy(np.load(DATA / case["initial_latents"]))
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


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_final_latents_and_sources_match_the_reference(case, pair):
    results, sources = run(case, pair)
    reference = np.load(DATA / case["final_latents"])
    assert sources == case["step_sources"]
    assert np.abs(results[-1].latents.numpy() - reference).max() / reference.std() < TOLERANCE


def test_every_step_of_the_recorded_trajectory_matches(pair):
    case = next(case for case in CASES if case["name"] == "ecdiff")
    recorded = np.load(DATA / case["trajectory"])
    results, _ = run(case, pair)
    for index, result in enumerate(results):
        assert result.step_index == index
        assert np.abs(result.latents.numpy() - recorded["latents"][index]).max() < TOLERANCE
        assert np.abs(result.noise_pred.numpy() - recorded["noise"][index]).max() < TOLERANCE


def test_timesteps_match_the_recorded_ones(pair):
    case = next(case for case in CASES if case["name"] == "ecdiff")
    config = parse_scheduler_config(pair["cloud"].info.scheduler_config)
    schedule = Stepper(
        *scheduler_for("ddim", config, own_class="DDIMScheduler"), case["num_inference_steps"], "cpu"
    ).schedule
    assert list(schedule.timesteps) == np.load(DATA / case["trajectory"])["timesteps"].tolist()
