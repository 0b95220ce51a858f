"""CogVideoX's DDIM and DPM: the numbers of diffusers, the reference's trajectory, and noise that needs no sending."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from diffusion.noise import draw_noise, step_generators
from diffusion.scheduler_config import scheduler_for
from diffusion.schedulers import Stepper
from diffusion.sensitivity import ddim_sensitivities
from diffusion.trajectory import Trajectory, denoise

REFERENCE = Path(__file__).parents[2] / "data" / "cogvideox-tiny"
# As CogVideoX-5B's folder has it; the 2B's has a shift of 3.
CONFIG = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
SHAPE = (2, 3, 4, 4, 6)  # batch, frames, channels, height, width
STEP_COUNTS = [1, 2, 25, 50, 61]
SPACINGS = ["trailing", "leading", "linspace"]


def stepper(name: str, steps: int = 50, noise_seed: int = 0, **changes: object) -> Stepper:
    own_class = "CogVideoXDDIMScheduler"
    return Stepper(*scheduler_for(name, CONFIG | changes, own_class=own_class, noise_seed=noise_seed), steps)


def test_reference_trajectory_is_reproduced_from_its_predictions():
    recorded = np.load(REFERENCE / "trajectory.npz")
    ours = stepper("ddim")
    assert ours.schedule.timesteps == tuple(recorded["timesteps"])
    latents = torch.from_numpy(np.load(REFERENCE / "initial_latents_seed7.npy"))
    for index, (v, expected) in enumerate(zip(recorded["noise"], recorded["latents"], strict=True)):
        latents = ours.step(torch.from_numpy(v), index, latents)
        assert np.abs(latents.numpy() - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_steps_are_bit_identical_to_diffusers(spacing, steps, shift):
    ours = stepper("ddim", steps, timestep_spacing=spacing, snr_shift_scale=shift)
    theirs = diffusers.CogVideoXDDIMScheduler(**ours.config)
    theirs.set_timesteps(steps)
    assert list(ours.schedule.timesteps) == theirs.timesteps[:steps].tolist()
    generator = torch.Generator().manual_seed(0)
    latents = expected = torch.randn(SHAPE, generator=generator)
    for index, timestep in enumerate(theirs.timesteps[:steps]):
        v = torch.randn(SHAPE, generator=generator)
        latents = ours.step(v, index, latents)
        expected = theirs.step(v, timestep, expected, return_dict=False)[0]
        assert torch.equal(latents, expected)


@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_zero_terminal_snr_starts_from_pure_noise_and_shifts_move_the_levels(name):
    schedules = [stepper(name, snr_shift_scale=shift).schedule for shift in (1.0, 3.0)]
    for schedule in schedules:
        assert (schedule.alphas[0], schedule.sigmas[0]) == (0.0, 1.0)
        assert schedule.init_noise_sigma == 1.0
    assert schedules[1].sigmas[25] > schedules[0].sigmas[25] + 0.05
    with pytest.raises(ValueError, match="zero terminal SNR"):
        stepper(name, prediction_type="epsilon")


def test_ddim_sensitivities_hold_for_cogvideox():
    ours = stepper("ddim")
    zero, one = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    for index, formula in enumerate(ddim_sensitivities(ours.schedule, "v_prediction")):
        moved = abs(float(ours.step(one, index, zero) - ours.step(-one, index, zero))) / 2
        assert formula == pytest.approx(moved, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), "3", None])
def test_shift_out_of_range_is_refused_by_name(scale):
    with pytest.raises(ValueError, match="snr_shift_scale"):
        stepper("ddim", snr_shift_scale=scale)


def test_betas_without_any_noise_are_refused():
    # In float32 the first level of signal is 1, and CogVideoX's step divides by the noise.
    with pytest.raises(ValueError, match="do not rise between 0 and 1"):
        stepper("ddim", beta_start=1e-9, beta_end=1e-9, beta_schedule="linear", rescale_betas_zero_snr=False)


# ------------------------------------------------------------------------------ DPM, which adds noise


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEP_COUNTS)
def test_dpm_steps_are_those_of_diffusers_with_the_same_generators(spacing, steps):
    ours = stepper("dpm", steps, noise_seed=7, timestep_spacing=spacing)
    theirs = diffusers.CogVideoXDPMScheduler(
        **{key: value for key, value in ours.config.items() if key != "noise_seed"}
    )
    theirs.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    latents = expected = torch.randn(SHAPE, generator=generator)
    before = None
    # As CogVideoXPipeline calls it.
    for index, timestep in enumerate(theirs.timesteps[:steps]):
        v = torch.randn(SHAPE, generator=generator)
        latents = ours.step(v, index, latents)
        back = theirs.timesteps[index - 1] if index > 0 else None
        generators = step_generators(7, index, 2)
        expected, before = theirs.step(v, before, timestep, back, expected, generator=generators, return_dict=False)
        assert torch.equal(latents, expected)
        assert latents.isfinite().all()


def run(trajectory: Trajectory, stop_step: int = 20) -> torch.Tensor:
    def v_of_a_gaussian(now: Trajectory) -> torch.Tensor:
        alpha, sigma = now.schedule.alphas[now.step_index], now.schedule.sigmas[now.step_index]
        denoised = now.latents * alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return (alpha * now.latents - denoised) / sigma

    list(denoise(trajectory, v_of_a_gaussian, lambda step: True, stop_step=stop_step, prediction_type="v_prediction"))
    return trajectory.latents


def start(seed: int = 5) -> Trajectory:
    return Trajectory(draw_noise(SHAPE, seed), stepper("dpm", 20, noise_seed=seed))


def test_dpm_of_an_exact_denoiser_ends_with_the_deviation_of_the_data():
    latents = draw_noise((1, 3, 4, 64, 64), 1)
    final = run(Trajectory(latents, stepper("dpm", 20, noise_seed=1)))
    assert float(final.std()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("at", [0, 1, 2, 13, 18, 19, 20])
def test_dpm_goes_on_elsewhere_bit_identically_with_one_tensor_and_no_noise_sent(at):
    whole, first = run(start()), start()
    run(first, at)
    state, later = first.state(), stepper("dpm", 20, noise_seed=5)
    assert set(state.scheduler_state) == (set() if at in (0, 20) else {"denoised_1"})
    later.load_state(state.scheduler_state, step_index=at)
    assert torch.equal(run(Trajectory(state.latents, later, start_step=at)), whole)


def test_dpm_without_history_restarts_at_order_1_as_a_first_step():
    ours, first = stepper("dpm", 20, noise_seed=5), start()
    run(first, 9)
    ours.load_state({}, step_index=9)
    resumed = run(Trajectory(first.latents, ours, start_step=9))
    assert resumed.isfinite().all()
    assert not torch.equal(resumed, run(start()))


def test_noise_of_a_step_is_that_of_the_seed_the_step_and_the_picture():
    def draws(seed: int, step: int, images: int) -> list[tuple[float, ...]]:
        return [tuple(torch.randn(4, generator=each).tolist()) for each in step_generators(seed, step, images)]

    assert draws(7, 3, 2) == draws(7, 3, 1) + draws(8, 3, 1)
    assert len({*draws(7, 3, 1), *draws(7, 4, 1), *draws(8, 3, 1), tuple(draw_noise((1, 4), 7)[0].tolist())}) == 4
    assert draws(2**64 - 1, 0, 2)[1:] == draws(0, 0, 1)


def test_other_seed_gives_other_noise_though_the_start_is_the_same():
    ours = [run(Trajectory(draw_noise(SHAPE, 5), stepper("dpm", 20, noise_seed=seed))) for seed in (5, 6)]
    assert float((ours[0] - ours[1]).std()) > 0.1
