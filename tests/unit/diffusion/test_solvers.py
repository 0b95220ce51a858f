"""The schedulers beside DDIM: the same numbers as diffusers, and a history that can be carried elsewhere."""

from itertools import product

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.predictors import PREDICTORS, Predictor, make_predictor
from diffusion.schedulers import Stepper, known_schedulers, scheduler_for
from diffusion.trajectory import Trajectory, denoise

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
BY_BETAS = known_schedulers("PNDMScheduler", SD)
SOLVERS = ["dpmpp-2m", "unipc", "euler"]
MULTISTEP = ["dpmpp-2m", "unipc"]
SHAPE = (1, 4, 8, 8)
DEVIATION = 0.5


def stepper(name: str, steps: int = 20, **changes: object) -> Stepper:
    config = SD | {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": True} | changes
    return Stepper(*scheduler_for(name, config, own_class="PNDMScheduler"), steps)


def start(ours: Stepper, predictor: Predictor | None = None, dtype: torch.dtype = torch.float32) -> Trajectory:
    return Trajectory(draw_noise(SHAPE, 3) * ours.schedule.init_noise_sigma, ours, predictor=predictor, dtype=dtype)


def gaussian(now: Trajectory) -> Tensor:
    """Return epsilon of E[x0 | x] for x0 of `DEVIATION`, in whatever scaling the latents have."""
    alpha, sigma = now.schedule.alphas[now.step_index], now.schedule.sigmas[now.step_index]
    x = now.latents.float()
    denoised = x * alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return convert_prediction(denoised, x, source="sample", target="epsilon", alpha=alpha, sigma=sigma)


def run(trajectory: Trajectory, stop_step: int | None = None, needs_evaluation=lambda step: True) -> Tensor:
    stop_step = trajectory.schedule.num_steps if stop_step is None else stop_step
    list(denoise(trajectory, gaussian, needs_evaluation, stop_step=stop_step, prediction_type="epsilon"))
    return trajectory.latents


def resumed(first: Trajectory, ours: Stepper, *, with_history: bool = True) -> Trajectory:
    state = first.state()
    ours.load_state(state.scheduler_state if with_history else {}, step_index=state.step_index)
    return Trajectory(state.latents, ours, start_step=state.step_index, dtype=first.latents.dtype)


# ------------------------------------------------------------------------------ the numbers of diffusers


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_steps_are_bit_identical_to_diffusers(name, spacing, steps, prediction_type):
    ours = stepper(name, steps, timestep_spacing=spacing, prediction_type=prediction_type)
    theirs = getattr(diffusers, ours.class_name).from_config(ours.config)
    theirs.set_timesteps(steps)
    assert list(ours.schedule.timesteps) == theirs.timesteps.tolist()
    assert ours.schedule.init_noise_sigma == float(theirs.init_noise_sigma)
    generator = torch.Generator().manual_seed(0)
    latents = expected = torch.randn(SHAPE, generator=generator) * ours.schedule.init_noise_sigma
    for index, timestep in enumerate(theirs.timesteps):
        noise_pred = torch.randn(SHAPE, generator=generator)
        assert torch.equal(ours.scale_model_input(latents, index), theirs.scale_model_input(expected, timestep))
        latents = ours.step(noise_pred, index, latents)
        expected = theirs.step(noise_pred, timestep, expected).prev_sample
        assert torch.equal(latents, expected)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [61, 103])
def test_timestep_too_many_by_rounding_takes_its_noise_level_along(name, steps):
    ours = stepper(name, steps, timestep_spacing="trailing")
    clean, noise = torch.full(SHAPE, 0.3), draw_noise(SHAPE, 1)
    last = steps - 1
    latents = ours.schedule.alphas[last] * clean + ours.schedule.sigmas[last] * noise
    assert torch.allclose(ours.step(noise, last, latents), clean, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "spacing"),
    # DDIM of diffusers steps by a fixed number of timesteps, which "linspace" does not keep to.
    [pair for pair in product(BY_BETAS, ["leading", "trailing", "linspace"]) if pair != ("ddim", "linspace")],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_true_predictions_lead_along_alpha_x0_plus_sigma_noise(name, spacing, prediction_type):
    ours = stepper(name, timestep_spacing=spacing, prediction_type=prediction_type)
    schedule = ours.schedule
    clean, noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)), draw_noise(SHAPE, 1)

    def on_the_way(index: int) -> Tensor:
        alpha = schedule.alphas[index] if index < schedule.num_steps else 1.0
        return alpha * clean + schedule.sigmas[index] * noise

    latents = on_the_way(0)
    for index in range(schedule.num_steps):
        # Said by a network of another type, as an edge model may be.
        told = convert_prediction(
            noise,
            latents,
            source="epsilon",
            target=prediction_type,
            alpha=schedule.alphas[index],
            sigma=schedule.sigmas[index],
        )
        latents = ours.step(told, index, latents)
        assert torch.allclose(latents, on_the_way(index + 1), atol=2e-3 * max(1.0, schedule.sigmas[index + 1]))


@pytest.mark.parametrize("name", BY_BETAS)
def test_network_is_fed_variance_preserving_latents_whatever_the_scheduler_keeps(name):
    ours = stepper(name)
    clean, noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)), draw_noise(SHAPE, 1)
    betas = torch.linspace(SD["beta_start"] ** 0.5, SD["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    # In any order: a correction asks for the input of a step that is long past.
    for index in (7, 0, 19):
        level = abar[int(ours.schedule.timesteps[index])]
        latents = ours.schedule.alphas[index] * clean + ours.schedule.sigmas[index] * noise
        fed = level.sqrt().float() * clean + (1 - level).sqrt().float() * noise
        assert torch.allclose(ours.scale_model_input(latents, index), fed, atol=1e-5)


def test_euler_starts_from_noise_of_its_largest_sigma():
    leading, trailing = stepper("euler").schedule, stepper("euler", timestep_spacing="trailing").schedule
    assert trailing.init_noise_sigma == trailing.sigmas[0] == pytest.approx(14.61, abs=0.01)
    assert leading.init_noise_sigma == pytest.approx((leading.sigmas[0] ** 2 + 1) ** 0.5)
    assert set(leading.alphas) == {1.0}


def test_second_order_solvers_come_closer_to_the_exact_flow_than_ddim():
    def error(name: str) -> float:
        ours = stepper(name, 50, timestep_spacing="trailing")
        trajectory = start(ours)
        alpha, sigma = ours.schedule.alphas[0], ours.schedule.sigmas[0]
        exact = trajectory.latents * DEVIATION / (alpha**2 * DEVIATION**2 + sigma**2) ** 0.5
        return float((run(trajectory) - exact).norm() / exact.norm())

    # What is left is the first-order last step, to sigma 0.
    assert error("dpmpp-2m") < 0.6 * error("ddim")
    assert error("unipc") < 0.6 * error("ddim")


# ------------------------------------------------------------------------------ the history


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 1, 2, 13, 18, 19, 20])
def test_history_that_travels_continues_bit_identically(name, dtype, at):
    whole = run(start(stepper(name), dtype=dtype))
    first = start(stepper(name), dtype=dtype)
    run(first, at)
    assert torch.equal(run(resumed(first, stepper(name))), whole)


@pytest.mark.parametrize("name", SOLVERS)
def test_history_survives_several_handoffs_in_a_row(name):
    trajectory = start(stepper(name))
    for stop_step in range(1, 21):
        run(trajectory, stop_step)
        trajectory = resumed(trajectory, stepper(name))
    assert torch.equal(trajectory.latents, run(start(stepper(name))))


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("at", [1, 2, 13, 18, 19])
def test_without_history_a_solver_restarts_at_order_1(name, at):
    first = start(stepper(name))
    run(first, at)
    theirs = getattr(diffusers, stepper(name).class_name).from_config(stepper(name).config)
    theirs.set_timesteps(20)
    theirs.set_begin_index(at)
    ours = resumed(first, stepper(name), with_history=False)
    expected = ours.latents
    while not ours.done:
        noise_pred = gaussian(ours)
        expected = theirs.step(noise_pred, theirs.timesteps[ours.step_index], expected).prev_sample
        ours.advance(noise_pred)
        assert torch.equal(ours.latents, expected)


@pytest.mark.parametrize(
    ("name", "at", "names"),
    [
        ("euler", 5, set()),
        ("dpmpp-2m", 0, set()),
        ("dpmpp-2m", 1, {"denoised_1"}),
        ("dpmpp-2m", 9, {"denoised_1"}),
        ("dpmpp-2m", 20, set()),
        ("unipc", 0, set()),
        ("unipc", 1, {"denoised_1", "last_latents"}),
        ("unipc", 9, {"denoised_1", "denoised_2", "last_latents"}),
        ("unipc", 20, set()),
    ],
)
def test_history_holds_what_the_next_step_needs_and_no_more(name, at, names):
    trajectory = start(stepper(name), dtype=torch.float16)
    run(trajectory, at)
    state = trajectory.state().scheduler_state
    assert set(state) == names
    assert all(tensor.dtype == torch.float32 and tensor.shape == SHAPE for tensor in state.values())


@pytest.mark.parametrize(
    ("name", "at", "names"),
    [
        ("euler", 5, ["denoised_1"]),
        ("dpmpp-2m", 5, ["denoised_2"]),
        ("dpmpp-2m", 5, ["denoised_1", "last_latents"]),
        ("dpmpp-2m", 0, ["denoised_1"]),
        ("unipc", 5, ["denoised_1"]),
        ("unipc", 5, ["denoised_1", "denoised_2"]),
        ("unipc", 5, ["x" * 64]),
        ("unipc", 1, ["denoised_1", "denoised_2", "last_latents"]),
    ],
)
def test_history_that_cannot_be_is_refused_in_one_line(name, at, names):
    with pytest.raises(ValueError, match="histor") as caught:
        stepper(name).load_state({each: torch.zeros(SHAPE) for each in names}, step_index=at)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", MULTISTEP)
def test_history_of_another_step_is_not_used(name):
    ours = stepper(name)
    ours.step(torch.zeros(SHAPE), 0, torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="the history is for step 1, not 7"):
        ours.step(torch.zeros(SHAPE), 7, torch.zeros(SHAPE))
    ours.load_state({}, step_index=7)
    assert ours.step(torch.zeros(SHAPE), 7, torch.zeros(SHAPE)).isfinite().all()


# ------------------------------------------------------------------------------ extrapolated steps


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_extrapolated_steps_stay_close_to_the_evaluated_trajectory(name, predictor, prediction_type):
    solver = stepper(name, 50, prediction_type=prediction_type)
    exact = run(start(stepper(name, 50)))
    ours = start(solver, make_predictor(predictor, solver.schedule, prediction_type=prediction_type, smoothing=0.3))
    final = run(ours, needs_evaluation=lambda step: step < 7 or (step - 6) % 3 == 0)
    assert float((final - exact).norm() / exact.norm()) < 0.2


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_consumes_the_extrapolated_prediction_as_a_real_one(name):
    solver, by_hand = stepper(name), start(stepper(name))
    ours = start(solver, make_predictor("reuse", solver.schedule, prediction_type="epsilon"))
    for step in range(20):
        if step % 2:
            ours.extrapolate()
        else:
            noise_pred = gaussian(ours)
            ours.advance(noise_pred)
        by_hand.advance(noise_pred)
    assert torch.equal(ours.latents, by_hand.latents)
