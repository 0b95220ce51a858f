"""The loop, on a denoiser whose answer is known in closed form: data that is normal with deviation S."""

from itertools import pairwise

import pytest
import torch

from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.predictors import COMPANIONS, PREDICTORS, Predictor, make_predictor
from diffusion.schedulers import Stepper, scheduler_for
from diffusion.sensitivity import ddim_sensitivities
from diffusion.trajectory import Trajectory, denoise

S = 0.5
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def stepper(steps: int = 50, **changes: object) -> Stepper:
    return Stepper(*scheduler_for("ddim", BASE | changes, own_class="PNDMScheduler"), steps)


def make(name: str, ours: Stepper) -> Predictor:
    return make_predictor(name, ours.schedule, prediction_type=ours.prediction_type, smoothing=0.3)


def start(steps: int = 50, predictor: str | None = None, companion: str | None = None, **changes: object) -> Trajectory:
    ours = stepper(steps, **changes)
    noise = draw_noise((1, 4, 16, 16), 3)
    return Trajectory(
        noise * ours.schedule.init_noise_sigma,
        ours,
        predictor=make(predictor, ours) if predictor else None,
        companion=make(companion, ours) if companion else None,
    )


def gaussian(now: Trajectory, *, deviation: float = S, target: str = "epsilon") -> torch.Tensor:
    """E[x0 | x] = x * alpha * S^2 / (alpha^2 S^2 + sigma^2), said in terms of `target`."""
    alpha, sigma = now.schedule.alphas[now.step_index], now.schedule.sigmas[now.step_index]
    x = now.model_input().float()
    denoised = x * alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
    return convert_prediction(denoised, x, source="sample", target=target, alpha=alpha, sigma=sigma)


def always(step_index: int) -> bool:
    return True


def finish(trajectory: Trajectory, needs_evaluation=always) -> torch.Tensor:
    *_, last = denoise(trajectory, gaussian, needs_evaluation, stop_step=trajectory.schedule.num_steps)
    assert trajectory.done
    return last.latents


def test_noise_becomes_data_of_the_right_deviation():
    # The exact flow multiplies the noise by S / sqrt(alpha_0^2 S^2 + sigma_0^2), up to the discretisation.
    final = finish(start(500))
    assert float(final.std()) == pytest.approx(S, rel=0.03)


def test_finer_schedules_come_closer_to_the_exact_flow():
    trajectory = start(10)
    noise, alpha, sigma = trajectory.latents, trajectory.schedule.alphas[0], trajectory.schedule.sigmas[0]
    exact = noise * S / (alpha**2 * S**2 + sigma**2) ** 0.5
    errors = [float((finish(start(steps, timestep_spacing="trailing")) - exact).abs().max()) for steps in (10, 50, 250)]
    assert errors[0] > errors[1] > errors[2]


def test_the_loop_converts_what_a_model_of_another_prediction_type_says():
    final = finish(start())
    trajectory = start()
    list(
        denoise(
            trajectory,
            lambda now: gaussian(now, target="sample"),
            always,
            stop_step=50,
            prediction_type="sample",
        )
    )
    assert torch.allclose(trajectory.latents, final, atol=1e-4)


@pytest.mark.parametrize("name", PREDICTORS)
def test_extrapolated_steps_stay_close_to_the_evaluated_trajectory(name):
    def every_third(step: int) -> bool:
        # Lambda leaps at the last steps; no plan of ours extrapolates them.
        return step < 7 or (step - 6) % 3 == 0 or step >= 48

    exact = finish(start())
    final = finish(start(predictor=name), every_third)
    assert float((final - exact).norm() / exact.norm()) < 0.15


def test_results_say_what_happened_at_each_step():
    trajectory = start(10, "linear")
    results = list(denoise(trajectory, gaussian, lambda step: step in (0, 1, 2, 5), stop_step=7))
    assert [result.step_index for result in results] == list(range(7))
    assert [result.evaluated for result in results] == [True, True, True, False, False, True, False]
    assert [result.extrapolation_error is not None for result in results] == [False] * 2 + [True] + [False] * 2 + [
        True,
        False,
    ]
    for before, after in pairwise(results):
        assert before.latents is after.latents_before


def test_extrapolation_error_is_the_relative_distance_to_the_prediction():
    trajectory = start(10, "reuse")
    first = torch.ones(1, 4, 16, 16)
    assert trajectory.advance(first).extrapolation_error is None
    assert trajectory.advance(4 * first).extrapolation_error == pytest.approx(0.75)


def test_extrapolation_error_of_a_zero_prediction_is_a_number():
    trajectory = start(10, "reuse")
    trajectory.advance(torch.zeros(1, 4, 16, 16))
    assert trajectory.advance(torch.zeros(1, 4, 16, 16)).extrapolation_error == 0.0


def test_nothing_past_the_last_item_taken_is_computed():
    calls = []
    trajectory = start()

    def evaluate(now: Trajectory) -> torch.Tensor:
        calls.append(now.step_index)
        return gaussian(now)

    steps = denoise(trajectory, evaluate, always, stop_step=50)
    next(steps)
    next(steps)
    assert calls == [0, 1]
    assert trajectory.step_index == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 1, 23, 49, 50])
def test_a_resumed_trajectory_continues_bit_identically(dtype, at):
    def fresh() -> Trajectory:
        return Trajectory(draw_noise((1, 4, 16, 16), 3), stepper(), dtype=dtype)

    whole = fresh()
    list(denoise(whole, gaussian, always, stop_step=50))
    first = fresh()
    list(denoise(first, gaussian, always, stop_step=at))
    state = first.state()
    ours = stepper()
    ours.load_state(state.scheduler_state, step_index=state.step_index)
    second = Trajectory(state.latents, ours, start_step=state.step_index, dtype=dtype)
    list(denoise(second, gaussian, always, stop_step=50))
    assert torch.equal(whole.latents, second.latents)
    assert second.latents.dtype == dtype


def test_a_resumed_trajectory_warms_its_predictor_up_again():
    ours = stepper()
    trajectory = Trajectory(torch.zeros(1, 4, 16, 16), ours, start_step=20, predictor=make("linear", ours))
    assert not trajectory.can_extrapolate
    with pytest.raises(ValueError, match="needs 2 real predictions"):
        trajectory.extrapolate()
    trajectory.advance(gaussian(trajectory))
    trajectory.advance(gaussian(trajectory))
    assert trajectory.can_extrapolate


def test_handoff_equals_two_runs_by_hand():
    by_hand, scheduler = draw_noise((1, 4, 16, 16), 3), stepper()
    for step in range(50):
        probe = Trajectory(by_hand, stepper(), start_step=step)
        by_hand = scheduler.step(gaussian(probe, deviation=S if step < 30 else 0.4), step, by_hand)
    trajectory = start()
    list(denoise(trajectory, gaussian, always, stop_step=30))
    list(denoise(trajectory, lambda now: gaussian(now, deviation=0.4), always, stop_step=50))
    assert torch.equal(trajectory.latents, by_hand)


def test_an_edge_model_of_another_prediction_type_gives_the_same_picture():
    epsilon, v = start(), start()
    while not epsilon.done:
        epsilon.advance(gaussian(epsilon))
        v.advance(gaussian(v, target="v_prediction"), prediction_type="v_prediction")
    assert torch.allclose(epsilon.latents, v.latents, atol=1e-4)


def test_latents_are_rounded_to_the_loop_dtype_after_each_step():
    trajectory = Trajectory(draw_noise((1, 4, 16, 16), 3), stepper(), dtype=torch.bfloat16)
    before = trajectory.latents
    noise_pred = gaussian(trajectory)
    result = trajectory.advance(noise_pred)
    assert torch.equal(result.latents, stepper().step(noise_pred, 0, before).to(torch.bfloat16))
    assert result.noise_pred.dtype == torch.float32


@pytest.mark.parametrize("at", [-1, 51])
def test_start_out_of_range_is_refused(at):
    with pytest.raises(ValueError, match=r"start_step must lie in 0\.\.50"):
        Trajectory(torch.zeros(1, 4, 2, 2), stepper(), start_step=at)


@pytest.mark.parametrize("stop", [9, 51])
def test_stop_out_of_range_is_refused(stop):
    trajectory = Trajectory(torch.zeros(1, 4, 2, 2), stepper(), start_step=10)
    with pytest.raises(ValueError, match=r"stop_step must lie in 10\.\.50"):
        list(denoise(trajectory, gaussian, always, stop_step=stop))


def test_extrapolating_without_a_predictor_is_refused():
    with pytest.raises(ValueError, match="without a predictor"):
        start().extrapolate()


def test_two_trajectories_do_not_disturb_each_other():
    alone = finish(start(20, "ecdiff"), lambda step: step < 4)
    one, two = (start(20, "ecdiff") for _ in range(2))
    for step in range(20):
        for trajectory, factor in ((one, 1.0), (two, 0.3)):
            if step < 4:
                trajectory.advance(factor * gaussian(trajectory))
            else:
                trajectory.extrapolate()
    assert torch.equal(one.latents, alone)


def every_fourth(step: int) -> bool:
    return step < 4 or step % 4 == 3


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_embedded_error_is_the_mean_distance_of_two_predictors_at_the_same_step(name):
    both, alone, other = start(20, name, COMPANIONS[name]), start(20, name), start(20, COMPANIONS[name])
    for step in range(6):
        error = both.embedded_error()
        if step < 3:
            assert error is None
        if step < 4:
            prediction = gaussian(both)
            for trajectory in (both, alone, other):
                trajectory.advance(prediction)
        else:
            predictions = [trajectory.extrapolate().noise_pred for trajectory in (alone, other)]
            assert both.extrapolate().noise_pred.equal(predictions[0])
            if step == 4:
                # From here on the three pass through different latents.
                assert error == pytest.approx(float((predictions[0] - predictions[1]).abs().mean()))
                assert error > 0


def test_asking_for_the_embedded_error_changes_nothing():
    asked, silent = start(20, "quadratic", "linear"), start(20, "quadratic")
    for step in range(20):
        asked.embedded_error()
        for trajectory in (asked, silent):
            if every_fourth(step):
                trajectory.advance(gaussian(trajectory))
            else:
                trajectory.extrapolate()
    assert torch.equal(asked.latents, silent.latents)


@pytest.mark.parametrize("pair", [(None, None), ("linear", None), (None, "linear")])
def test_there_is_no_embedded_error_without_a_pair(pair):
    trajectory = start(20, *pair)
    for _ in range(4):
        trajectory.advance(gaussian(trajectory))
    assert trajectory.embedded_error() is None


def test_the_embedded_error_times_the_sensitivity_is_of_the_size_of_what_the_latents_are_off_by():
    trajectory = start(20, "linear", "quadratic")
    for _ in range(8):
        trajectory.advance(gaussian(trajectory))
    error, sensitivity = trajectory.embedded_error(), ddim_sensitivities(trajectory.schedule, "epsilon")[8]
    exact = stepper(20).step(gaussian(trajectory), 8, trajectory.latents)
    off = float((trajectory.extrapolate().latents - exact).abs().mean())
    assert error is not None
    assert error * sensitivity / off == pytest.approx(1.0, abs=0.5)
