"""The formulas against what diffusers' schedulers do."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusion.schedule import Schedule
from diffusion.schedulers import Stepper, scheduler_for
from diffusion.sensitivity import ddim_sensitivities

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def measured(stepper: Stepper, step_index: int) -> float:
    """|d x' / d prediction| by a central difference in float32."""
    latents = torch.full((1, 1, 1, 1), 0.3)
    above, below = (stepper.step(torch.full_like(latents, value), step_index, latents) for value in (0.5, -0.5))
    return abs(float(above - below))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("steps", [20, 50])
def test_sensitivities_are_the_differences_of_real_steps(prediction_type, scheduler, steps):
    config = CONFIG | {"prediction_type": prediction_type, "timestep_spacing": "leading"}
    stepper = Stepper(*scheduler_for(scheduler, config, own_class="PNDMScheduler"), steps)
    formulas = ddim_sensitivities(stepper.schedule, prediction_type)
    assert len(formulas) == steps
    for step_index, formula in enumerate(formulas):
        assert formula == pytest.approx(measured(stepper, step_index), rel=1e-3, abs=1e-5)


def test_the_last_step_bounds_a_scheduler_that_ends_short_of_clean_latents():
    config = CONFIG | {"prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1}
    stepper = Stepper(*scheduler_for("ddim", config, own_class="PNDMScheduler"), 50)
    *formulas, last = ddim_sensitivities(stepper.schedule, "v_prediction")
    assert formulas == pytest.approx([measured(stepper, step) for step in range(49)], rel=1e-3, abs=1e-5)
    assert last > measured(stepper, 49)


def test_zero_terminal_snr_has_finite_sensitivities_to_v_and_x0():
    config = CONFIG | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for prediction_type in ("v_prediction", "sample"):
        stepper = Stepper(
            *scheduler_for("ddim", config | {"prediction_type": prediction_type}, own_class="PNDMScheduler"), 50
        )
        assert stepper.schedule.alphas[0] == 0.0
        formulas = ddim_sensitivities(stepper.schedule, prediction_type)
        assert formulas[0] == pytest.approx(measured(stepper, 0), rel=1e-3)


def test_flow_is_the_fall_of_sigma_as_the_flow_scheduler_steps_it():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas.tolist()
    schedule = Schedule(
        timesteps=tuple(scheduler.timesteps.tolist()),
        sigmas=tuple(sigmas),
        alphas=tuple(1.0 - sigma for sigma in sigmas[:-1]),
    )
    latents = torch.full((1, 1, 1, 1), 0.3)
    for timestep, formula in zip(scheduler.timesteps, ddim_sensitivities(schedule, "flow_prediction"), strict=True):
        moved = scheduler.step(torch.ones_like(latents), timestep, latents, return_dict=False)[0] - latents
        assert formula == pytest.approx(abs(float(moved)), rel=1e-4)


@pytest.mark.parametrize(
    ("prediction_type", "alpha", "sigma"), [("epsilon", 0.0, 1.0), ("sample", 1.0, 0.0)], ids=["signal", "noise"]
)
def test_a_step_that_the_prediction_does_not_determine_is_refused(prediction_type, alpha, sigma):
    schedule = Schedule(timesteps=(999.0,), alphas=(alpha,), sigmas=(sigma, 0.0))
    with pytest.raises(ValueError, match="not determined by"):
        ddim_sensitivities(schedule, prediction_type)


def test_an_unknown_prediction_type_is_refused():
    schedule = Schedule(timesteps=(999.0,), alphas=(0.1,), sigmas=(0.9, 0.0))
    with pytest.raises(ValueError, match="unknown prediction type 'score'"):
        ddim_sensitivities(schedule, "score")
