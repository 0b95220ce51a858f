from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from bench.quality.log_snr import LogSnrStepper
from diffusion.schedulers import scheduler_for

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


@pytest.mark.parametrize("scheduler", ["dpmpp-2m", "unipc"])
def test_steps_lie_evenly_in_lambda(scheduler: str) -> None:
    schedule = LogSnrStepper(*scheduler_for(scheduler, CONFIG, own_class="PNDMScheduler"), 21).schedule

    lambdas = [math.log(alpha / sigma) for alpha, sigma in zip(schedule.alphas, schedule.sigmas[:-1], strict=True)]
    assert [later - earlier for earlier, later in pairwise(lambdas)] == pytest.approx(
        [(lambdas[-1] - lambdas[0]) / 20] * 20
    )
    assert schedule.timesteps[0] == pytest.approx(999.0)
    assert schedule.timesteps[-1] == pytest.approx(0.0)


def test_it_is_the_solver_of_diffusers_with_uniform_lambdas() -> None:
    stepper = LogSnrStepper(*scheduler_for("dpmpp-2m", CONFIG, own_class="PNDMScheduler"), 12)
    theirs = DPMSolverMultistepScheduler(**CONFIG, use_lu_lambdas=True)
    theirs.set_timesteps(12)
    ours = expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    for step_index, timestep in enumerate(theirs.timesteps):
        ours = stepper.step(0.3 * ours, step_index, ours)
        expected = theirs.step(0.3 * expected, timestep, expected, return_dict=False)[0]

    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
