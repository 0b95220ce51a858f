"""Schedulers of flows: the timesteps, noise levels and numbers of diffusers as its pipelines call it."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.predictors import PREDICTORS, make_predictor
from diffusion.scheduler_config import folded_shift, scheduler_for
from diffusion.schedulers import Stepper
from diffusion.sensitivity import ddim_sensitivities
from diffusion.trajectory import Trajectory, denoise

FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
SD3 = {"num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = SD3 | {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
WAN = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
    "num_train_timesteps": 1000,
}
STEP_COUNTS = [1, 2, 4, 28, 50]
SEQ_LENS = [16, 256, 1024, 4096, 16384]
SHAPE = (1, 4, 6, 8)


def stepper(name: str, config: dict, steps: int, own_class: str = FLOW_EULER) -> Stepper:
    return Stepper(*scheduler_for(name, config, own_class=own_class), steps)


def mu_of(config: dict, image_seq_len: int) -> float:
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(image_seq_len, *(config[key] for key in keys))


def same_schedule(ours: Stepper, theirs) -> None:
    schedule = ours.schedule
    assert list(schedule.timesteps) == theirs.timesteps.tolist()
    assert list(schedule.sigmas) == theirs.sigmas.tolist()
    # Said in float32, as the step computes it.
    assert schedule.alphas == pytest.approx((1 - theirs.sigmas[:-1]).tolist(), abs=1e-7)
    assert schedule.init_noise_sigma == 1.0


# ------------------------------------------------------------------------------ Euler, as SD3 and FLUX call it


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5, 17])
def test_static_shift_is_placed_as_sd3_places_it(steps, shift):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    same_schedule(stepper("euler", SD3 | {"shift": shift}, steps), theirs)


def test_smallest_sigma_of_a_static_shift_is_shifted_twice():
    once = 3.0 * 0.001 / (1 + 2.0 * 0.001)
    twice = 3.0 * once / (1 + 2.0 * once)
    assert stepper("euler", SD3, 28).schedule.sigmas[-2] == pytest.approx(twice, rel=1e-5)
    dynamic = folded_shift(DYNAMIC | {"base_shift": 3.0, "max_shift": 3.0, "time_shift_type": "linear"}, 256)
    assert stepper("euler", dynamic, 28).schedule.sigmas[-2] == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("image_seq_len", SEQ_LENS)
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_folded_shift_is_placed_as_sd3_places_its_mu(steps, image_seq_len, kind):
    config = DYNAMIC | {"time_shift_type": kind}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(steps, mu=mu_of(config, image_seq_len))
    same_schedule(stepper("euler", folded_shift(config, image_seq_len), steps), theirs)


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("image_seq_len", SEQ_LENS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_trailing_spacing_is_what_flux_passes_by_hand(steps, image_seq_len, dynamic):
    config = DYNAMIC | {"use_dynamic_shifting": dynamic, "shift": 1.0}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu_of(config, image_seq_len))
    same_schedule(
        stepper("euler", folded_shift(config, image_seq_len) | {"timestep_spacing": "trailing"}, steps), theirs
    )


def test_folding_leaves_a_static_shift_and_a_folded_one_as_they_are():
    assert folded_shift(SD3, 4096) == SD3
    folded = folded_shift(DYNAMIC, 1024)
    assert folded_shift(folded, 16384) == folded
    assert {key: value for key, value in folded.items() if "_shift" not in key} == {
        key: value for key, value in DYNAMIC.items() if "_shift" not in key
    }


def test_shift_that_depends_on_the_size_is_refused_by_name():
    with pytest.raises(ValueError, match=r"use_dynamic_shifting is on.*it must be folded first") as caught:
        stepper("euler", DYNAMIC, 20)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="it must be folded first"):
        stepper("unipc", DYNAMIC, 20)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"base_image_seq_len": 4096}, "base_image_seq_len and max_image_seq_len are both 4096"),
        ({"max_shift": "1.15"}, "max_shift cannot be '1.15'"),
        ({"base_shift": float("nan")}, "base_shift must lie in"),
        ({"base_image_seq_len": 0}, "base_image_seq_len must lie in"),
    ],
)
def test_shift_that_cannot_be_folded_is_refused_in_one_line(change, match):
    with pytest.raises(ValueError, match=match):
        folded_shift(DYNAMIC | change, 1024)


@pytest.mark.parametrize(
    "change",
    [
        {"shift_terminal": 0.02},
        {"invert_sigmas": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"stochastic_sampling": True},
        {"timestep_spacing": "leading"},
        {"shift": 0.0},
        {"shift": float("inf")},
        {"time_shift_type": "cubic"},
    ],
    ids=str,
)
def test_what_is_not_run_of_a_flow_is_refused_by_name(change):
    (key,) = change
    with pytest.raises(ValueError, match=f"scheduler config: {key} must"):
        stepper("euler", SD3 | change, 20)


@pytest.mark.parametrize("mu", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_shift_without_room_for_the_steps_is_refused_in_one_line(mu, kind):
    config = DYNAMIC | {"base_shift": mu, "max_shift": mu, "time_shift_type": kind}
    if (mu, kind) in ((0.0, "exponential"), (100.0, "linear")):
        assert stepper("euler", config, 20).schedule.num_steps == 20
        return
    with pytest.raises(ValueError, match=r"cannot place 20 steps|do not fall"):
        stepper("euler", config, 20)


@pytest.mark.parametrize("steps", STEP_COUNTS)
def test_euler_steps_are_bit_identical_to_diffusers(steps):
    ours = stepper("euler", SD3, steps)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(steps)
    check_steps(ours, theirs)


def check_steps(ours: Stepper, theirs) -> None:
    assert ours.prediction_type == "flow_prediction"
    generator = torch.Generator().manual_seed(0)
    latents = expected = torch.randn(SHAPE, generator=generator)
    for index, timestep in enumerate(theirs.timesteps):
        flow = torch.randn(SHAPE, generator=generator)
        assert torch.equal(ours.scale_model_input(latents, index), latents)
        latents = ours.step(flow, index, latents)
        expected = theirs.step(flow, timestep, expected, return_dict=False)[0]
        assert torch.equal(latents, expected)


# ------------------------------------------------------------------------------ the solvers, as Wan calls them


SOLVERS = {"unipc": "UniPCMultistepScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler"}


@pytest.mark.parametrize(("name", "class_name"), SOLVERS.items())
@pytest.mark.parametrize("flow_shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("steps", STEP_COUNTS)
def test_solvers_of_a_flow_are_bit_identical_to_diffusers(name, class_name, flow_shift, steps):
    config = WAN | {"flow_shift": flow_shift}
    theirs = getattr(diffusers, class_name)(**config)
    theirs.set_timesteps(steps)
    ours = stepper(name, config, steps, own_class="UniPCMultistepScheduler")
    assert ours.class_name == class_name
    same_schedule(ours, theirs)
    check_steps(ours, theirs)


@pytest.mark.parametrize("change", [{"use_flow_sigmas": False}, {"prediction_type": "epsilon"}], ids=str)
def test_flow_sigmas_and_flow_prediction_go_together_or_not_at_all(change):
    with pytest.raises(ValueError, match=r"prediction_type \w+ does not go with use_flow_sigmas"):
        Stepper("UniPCMultistepScheduler", WAN | change, 20)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("at", [0, 1, 2, 13, 18, 19, 20])
def test_history_of_a_flow_solver_continues_bit_identically(name, at):
    def make() -> Stepper:
        return stepper(name, WAN, 20, own_class="UniPCMultistepScheduler")

    whole = run(Trajectory(draw_noise(SHAPE, 3), make()))
    first = Trajectory(draw_noise(SHAPE, 3), make())
    run(first, at)
    state, later = first.state(), make()
    later.load_state(state.scheduler_state, step_index=at)
    assert torch.equal(run(Trajectory(state.latents, later, start_step=at)), whole)


# ------------------------------------------------------------------------------ one flow, any of its schedulers


def test_shift_is_taken_over_by_whatever_key_the_class_has_for_it():
    assert scheduler_for("euler", WAN, own_class="UniPCMultistepScheduler")[1]["shift"] == 3.0
    for name in SOLVERS:
        assert scheduler_for(name, SD3, own_class=FLOW_EULER)[1]["flow_shift"] == 3.0
        folded = folded_shift(DYNAMIC | {"time_shift_type": "linear"}, 1024)
        assert scheduler_for(name, folded, own_class=FLOW_EULER)[1]["flow_shift"] == folded["base_shift"]
        folded = folded_shift(DYNAMIC, 1024)
        config = scheduler_for(name, folded, own_class=FLOW_EULER)[1]
        assert config["flow_shift"] == pytest.approx(np.exp(folded["base_shift"]))
        assert config["prediction_type"] == "flow_prediction"


@pytest.mark.parametrize("name", ["euler", "unipc", "dpmpp-2m"])
@pytest.mark.parametrize("told", ["flow_prediction", "epsilon", "v_prediction", "sample"])
def test_true_predictions_lead_along_the_straight_line_to_x0(name, told):
    ours = stepper(name, SD3, 20)
    schedule = ours.schedule
    clean, noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)), draw_noise(SHAPE, 1)
    latents = schedule.alphas[0] * clean + schedule.sigmas[0] * noise
    for index in range(20):
        levels = {"alpha": schedule.alphas[index], "sigma": schedule.sigmas[index]}
        true = noise - clean
        if told != "flow_prediction" and levels["alpha"] > 1e-3:  # else epsilon says nothing of x0
            # Said by a network of another type, as an edge model may be.
            true = convert_prediction(true, latents, source="flow_prediction", target=told, **levels)
            true = convert_prediction(true, latents, source=told, target="flow_prediction", **levels)
        latents = ours.step(true, index, latents)
        sigma = schedule.sigmas[index + 1]
        assert torch.allclose(latents, (1 - sigma) * clean + sigma * noise, atol=2e-3)


def gaussian(now: Trajectory) -> Tensor:
    """Return the flow of E[x0 | x] for x0 of deviation 0.5."""
    alpha, sigma = now.schedule.alphas[now.step_index], now.schedule.sigmas[now.step_index]
    x = now.latents.float()
    denoised = x * alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    return (x - alpha * denoised) / sigma - denoised


def run(trajectory: Trajectory, stop_step: int | None = None, needs_evaluation=lambda step: True) -> Tensor:
    stop_step = trajectory.schedule.num_steps if stop_step is None else stop_step
    list(denoise(trajectory, gaussian, needs_evaluation, stop_step=stop_step, prediction_type="flow_prediction"))
    return trajectory.latents


def test_every_scheduler_of_a_flow_comes_near_its_exact_end_and_the_solvers_nearer():
    def error(name: str) -> float:
        ours = stepper(name, SD3, 30)
        # With sigma 1 at the start, x0 = 0.5 * noise at the end.
        exact = 0.5 * draw_noise(SHAPE, 3)
        return float((run(Trajectory(draw_noise(SHAPE, 3), ours)) - exact).norm() / exact.norm())

    assert error("euler") < 0.1
    assert error("unipc") < 0.5 * error("euler")
    assert error("dpmpp-2m") < 0.5 * error("euler")


@pytest.mark.parametrize("name", ["euler", "unipc", "dpmpp-2m"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_extrapolated_steps_of_a_flow_stay_close_to_the_evaluated_trajectory(name, predictor):
    ours = stepper(name, SD3, 50)
    exact = run(Trajectory(draw_noise(SHAPE, 3), stepper(name, SD3, 50)))
    rule = make_predictor(predictor, ours.schedule, prediction_type="flow_prediction", smoothing=0.3)
    final = run(
        Trajectory(draw_noise(SHAPE, 3), ours, predictor=rule),
        # The last steps are evaluated: their x0 lies far along log(alpha / sigma).
        needs_evaluation=lambda step: step < 7 or (step - 6) % 3 == 0 or step >= 48,
    )
    assert float((final - exact).norm() / exact.norm()) < 0.2


def test_sensitivity_of_a_flow_step_is_the_fall_of_sigma():
    schedule = stepper("euler", SD3, 20).schedule
    falls = [before - after for before, after in zip(schedule.sigmas, schedule.sigmas[1:], strict=False)]
    assert ddim_sensitivities(schedule, "flow_prediction") == pytest.approx(falls)
