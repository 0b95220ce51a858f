"""What refresh policies measure, on predictions and latents whose numbers are known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffusion.measures import MEASURES, Measure, OutputChange, ThirdDifference, make_measure
from diffusion.noise import draw_noise
from diffusion.predictors import make_predictor
from diffusion.schedulers import Stepper, scheduler_for
from diffusion.sensitivity import ddim_sensitivities
from diffusion.trajectory import StepResult, Trajectory

BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SHAPE = (1, 4, 8, 8)


def start(scheduler: str = "ddim", shape: tuple[int, ...] = SHAPE, **changes: object) -> tuple[Trajectory, str]:
    """Return a trajectory with both predictors, and what its scheduler consumes."""
    stepper = Stepper(*scheduler_for(scheduler, BASE | changes, own_class="PNDMScheduler"), 20)
    rules = {
        role: make_predictor(name, stepper.schedule, prediction_type=stepper.prediction_type)
        for role, name in (("predictor", "linear"), ("companion", "quadratic"))
    }
    latents = draw_noise(shape, 3) * stepper.schedule.init_noise_sigma
    return Trajectory(latents, stepper, **rules), stepper.prediction_type


def rough(step: int) -> torch.Tensor:
    """A prediction that no polynomial through a few steps follows."""
    return draw_noise(SHAPE, 100 + step)


def results(points: list[float]) -> list[StepResult]:
    """Return steps whose latents pass through `points`, each evaluated with a prediction of twice its start."""
    return [
        StepResult(
            step_index=index,
            evaluated=True,
            latents_before=torch.full(SHAPE, before),
            latents=torch.full(SHAPE, after),
            noise_pred=torch.full(SHAPE, 2 * before),
        )
        for index, (before, after) in enumerate(pairwise(points))
    ]


def values(measure: Measure, points: list[float]) -> list[float | None]:
    taken = [measure.value()]
    for result in results(points):
        measure.observe(result)
        taken.append(measure.value())
    return taken


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_embedded_error_is_what_the_two_predictors_move_the_latents_apart(
    prediction_type: str, scheduler: str
) -> None:
    trajectory, consumed = start(scheduler, prediction_type=prediction_type)
    measure = make_measure("embedded-error", trajectory, prediction_type=consumed)
    for step in range(6):
        assert (measure.value() is None) == (step < 3)
        measure.observe(trajectory.advance(rough(step)))
    error, taken = trajectory.embedded_error(), measure.value()
    assert error is not None
    schedule = trajectory.schedule
    norm = (schedule.alphas[7] ** 2 + schedule.sigmas[7] ** 2) ** 0.5
    assert taken == pytest.approx(error * ddim_sensitivities(schedule, consumed)[6] / norm)


def test_one_tolerance_means_the_same_to_ddim_and_euler() -> None:
    # With "leading" spacing both place their steps at the same noise levels; their latents differ by a factor.
    taken = []
    for scheduler in ("ddim", "euler"):
        trajectory, consumed = start(scheduler, timestep_spacing="leading")
        measure = make_measure("embedded-error", trajectory, prediction_type=consumed)
        for step in range(5):
            trajectory.advance(rough(step))
        taken.append(measure.value())
    assert taken[0] == pytest.approx(taken[1], rel=1e-3)


def test_zero_terminal_snr_leaves_the_embedded_error_a_number() -> None:
    trajectory, consumed = start(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert trajectory.schedule.alphas[0] == 0.0
    measure = make_measure("embedded-error", trajectory, prediction_type=consumed)
    for step in range(3):
        trajectory.advance(rough(step))
    taken = measure.value()
    assert taken is not None
    assert 0 < taken < 10


def test_a_parabola_has_no_third_difference() -> None:
    assert values(ThirdDifference(), [0.0, 1.0, 4.0, 9.0, 16.0])[3:] == pytest.approx([0.0, 0.0])


def test_the_third_difference_is_half_of_it_relative_to_the_newest_step() -> None:
    # Of x = i^3 it is 6; the newest step is 27 - 8.
    assert values(ThirdDifference(), [0.0, 1.0, 8.0, 27.0]) == [None, None, None, pytest.approx(3 / 19)]


def test_the_output_change_is_the_rate_between_real_steps_times_the_newest_step() -> None:
    # |dv| / |dx| is 2 everywhere; the step from 5 to 8 used the prediction 10.
    taken = values(OutputChange(), [2.0, 5.0, 8.0])
    assert taken == [None, None, pytest.approx(2 * 3 / 10)]


def test_an_extrapolated_step_does_not_change_the_rate() -> None:
    measure = OutputChange()
    first, second, third = results([2.0, 5.0, 8.0, 9.0])
    measure.observe(first)
    measure.observe(second)
    extrapolated = {**vars(third), "evaluated": False, "noise_pred": torch.full(SHAPE, 100.0)}
    measure.observe(StepResult(**extrapolated))
    assert measure.value() == pytest.approx(2 * 1 / 100)


@pytest.mark.parametrize("points", [[0.0] * 5, [1.0] * 5, [0.0, 1.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("measure", [ThirdDifference, OutputChange])
def test_latents_that_stand_still_and_predictions_of_zero_raise_nothing(
    measure: type[Measure], points: list[float]
) -> None:
    assert all(value is None or value >= 0 for value in values(measure(), points))


@pytest.mark.parametrize("name", MEASURES)
def test_measuring_changes_no_latents(name: str) -> None:
    (asked, consumed), (silent, _) = start(), start()
    measure = make_measure(name, asked, prediction_type=consumed)
    for step in range(12):
        measure.value()
        for trajectory in (asked, silent):
            result = trajectory.extrapolate() if step > 3 and step % 3 else trajectory.advance(rough(step))
            if trajectory is asked:
                measure.observe(result)
    assert torch.equal(asked.latents, silent.latents)
