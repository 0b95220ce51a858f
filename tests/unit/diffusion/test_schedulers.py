import inspect
import json
import math

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.scheduler_config import _DDIM_FIELDS, _FIELDS, MAX_CONFIG_CHARS, checked_scheduler_config
from diffusion.schedulers import SCHEDULERS, Stepper, _kept_steps, parse_scheduler_config, scheduler_for

SD = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
ZERO_SNR = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def stepper(steps: int = 50, **changes: object) -> Stepper:
    return Stepper(*scheduler_for("ddim", SD | changes), steps)


def test_every_name_has_a_class_that_can_be_built():
    for name in SCHEDULERS:
        assert Stepper(*scheduler_for(name, SD), 4).schedule.num_steps == 4


# Keys that say nothing by themselves: of flow sigmas, of networks that predict a variance, of Karras sigmas.
WITHOUT_MEANING = {
    *("flow_shift", "time_shift_type", "shift_terminal", "use_dynamic_shifting"),
    *("variance_type", "sigma_min", "sigma_max"),
}


@pytest.mark.parametrize("class_name", SCHEDULERS.values())
def test_known_fields_and_defaults_are_those_of_diffusers(class_name):
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    theirs = {key: parameter.default for key, parameter in parameters.items() if key != "self"}
    ours = {key: field.default for key, field in _FIELDS[class_name].items()}
    assert ours == {key: theirs[key] for key in ours}
    assert set(theirs) - set(ours) <= WITHOUT_MEANING


@pytest.mark.parametrize(("name", "class_name"), SCHEDULERS.items())
def test_config_of_another_class_becomes_what_from_config_makes_of_it(name, class_name):
    theirs = getattr(diffusers, class_name).from_config(PNDMScheduler.from_config(SD).config).config
    ours_name, ours = scheduler_for(name, SD)
    assert ours_name == class_name
    assert ours == {key: theirs[key] for key in ours}


def test_name_of_a_solver_stands_above_what_the_model_says_of_it():
    model = SD | {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun", "thresholding": True}
    config = scheduler_for("dpmpp-2m", model)[1]
    assert (config["algorithm_type"], config["solver_order"], config["solver_type"]) == ("dpmsolver++", 2, "midpoint")
    assert config["thresholding"]


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "euler"])
@pytest.mark.parametrize(
    "change",
    [{"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}, {"use_beta_sigmas": 1.0}],
    ids=str,
)
def test_noise_levels_that_are_not_run_are_refused_by_name(name, change):
    (key,) = change
    with pytest.raises(ValueError, match=f"scheduler config: {key} must be"):
        scheduler_for(name, SD | change)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50, 300])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_step_is_bit_identical_to_diffusers(spacing, steps, prediction_type):
    ours = stepper(steps, timestep_spacing=spacing, prediction_type=prediction_type)
    theirs = DDIMScheduler.from_config(ours.config)
    theirs.set_timesteps(steps)
    assert list(ours.schedule.timesteps) == theirs.timesteps.tolist()
    latents, noise_pred = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for index, timestep in enumerate(theirs.timesteps):
        assert torch.equal(
            ours.step(noise_pred, index, latents), theirs.step(noise_pred, timestep, latents).prev_sample
        )


def test_step_computes_in_float32_whatever_the_latents_dtype():
    ours = stepper()
    latents = torch.randn(1, 4, 8, 8).to(torch.bfloat16)
    noise_pred = torch.randn(1, 4, 8, 8)
    assert torch.equal(ours.step(noise_pred, 3, latents), ours.step(noise_pred, 3, latents.float()))
    assert ours.step(noise_pred, 3, latents).dtype == torch.float32


def test_schedule_states_signal_and_noise_of_each_step():
    schedule = stepper().schedule
    assert schedule.num_steps == 50
    assert schedule.sigmas[-1] == 0.0
    assert all(
        alpha**2 + sigma**2 == pytest.approx(1)
        for alpha, sigma in zip(schedule.alphas, schedule.sigmas[:-1], strict=True)
    )
    assert list(schedule.sigmas) == sorted(schedule.sigmas, reverse=True)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
# 61 and 103: "trailing" in diffusers makes one timestep more, -1.
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, 25, 50, 61, 103, 333, 998])
def test_any_step_count_is_placed_exactly(name, spacing, steps):
    schedule = Stepper(*scheduler_for(name, SD | {"timestep_spacing": spacing}), steps).schedule
    assert schedule.num_steps == steps
    assert schedule.timesteps[0] < 1000
    assert schedule.timesteps[-1] >= 0
    assert schedule.sigmas[-2] > schedule.sigmas[-1] == 0.0


def test_a_scheduler_that_is_longer_than_models_are_is_not_kept():
    _kept_steps.cache_clear()
    assert stepper(num_train_timesteps=1001).schedule.num_steps == 50
    assert _kept_steps.cache_info().currsize == 0
    # The same again is a copy: neither moves the other.
    first, second = (Stepper(*scheduler_for("dpmpp-2m", SD), 4) for _ in range(2))
    latents = torch.ones(1, 1, 2, 2)
    first.step(latents, 0, latents)
    assert first.state()
    assert not second.state()
    assert _kept_steps.cache_info().currsize == 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_count_out_of_range_is_refused(steps):
    with pytest.raises(ValueError, match=r"must lie in 1\.\.1000"):
        stepper(steps)


def test_last_timestep_beyond_the_training_range_is_refused():
    # 1000 steps "leading" with offset 1 would ask for timestep 1000 of 0..999.
    with pytest.raises(ValueError, match="cannot place 1000 steps"):
        stepper(1000)


def test_zero_terminal_snr_runs_with_v_prediction_and_is_refused_with_epsilon():
    config = ZERO_SNR | {"prediction_type": "v_prediction"}
    ours = Stepper(*scheduler_for("ddim", config), 20)
    assert ours.schedule.alphas[0] == 0.0
    assert ours.step(torch.ones(1, 1, 2, 2), 0, torch.ones(1, 1, 2, 2)).isfinite().all()
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Stepper(*scheduler_for("ddim", ZERO_SNR), 20)


def test_ddim_carries_no_state_and_refuses_one():
    ours = stepper()
    ours.load_state(ours.state(), step_index=0)
    with pytest.raises(ValueError, match="keeps no history"):
        ours.load_state({"model_outputs": torch.zeros(1)}, step_index=9)


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": True},
        {"num_train_timesteps": None},
        {"beta_start": "0.1"},
        {"beta_start": float("nan")},
        {"beta_end": float("inf")},
        {"beta_end": 2.0},
        {"beta_schedule": "__import__"},
        {"beta_schedule": ["linear"]},
        {"prediction_type": "flow"},
        {"timestep_spacing": {}},
        {"clip_sample": 1},
        {"steps_offset": -1},
        {"trained_betas": [0.1] * 999},
        {"trained_betas": [0.1] * 999 + ["x"]},
        {"trained_betas": [0.1] * 999 + [float("nan")]},
        {"trained_betas": "x" * 1000},
    ],
    ids=str,
)
def test_malformed_config_is_refused_in_one_line(change):
    with pytest.raises(ValueError, match="scheduler config") as caught:
        Stepper("DDIMScheduler", change, 10)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_unknown_key_of_a_remote_config_is_refused():
    with pytest.raises(ValueError, match="has no variance_type"):
        Stepper("DDIMScheduler", {"variance_type": "fixed"}, 10)


def test_class_outside_the_allow_list_is_refused():
    with pytest.raises(ValueError, match="is not one of DDIMScheduler, "):
        Stepper("UNet2DConditionModel", {}, 10)


def test_unknown_scheduler_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: ddim"):
        scheduler_for("dpm", SD)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '"' + "x" * MAX_CONFIG_CHARS + '"'])
def test_config_text_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="scheduler config"):
        parse_scheduler_config(text)


_ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2000), st.floats(), st.sampled_from(["linear", "epsilon", "trailing", ""])
)
_PLAUSIBLE = {
    "num_train_timesteps": st.integers(1, 1200),
    "beta_start": st.floats(1e-9, 0.999),
    "beta_end": st.floats(1e-9, 0.999),
    "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
    "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
    "steps_offset": st.integers(0, 1200),
    "rescale_betas_zero_snr": st.booleans(),
    "thresholding": st.booleans(),
}


@settings(max_examples=300, deadline=None)
@given(
    class_name=st.sampled_from(list(SCHEDULERS.values())),
    config=st.one_of(
        st.fixed_dictionaries({}, optional=_PLAUSIBLE),
        st.fixed_dictionaries({}, optional=dict.fromkeys(_DDIM_FIELDS, _ANYTHING)),
    ),
    steps=st.integers(-1, 60),
)
def test_any_config_gives_a_finite_schedule_or_one_line(class_name, config, steps):
    config = {key: value for key, value in config.items() if key in _FIELDS[class_name]}
    try:
        ours = Stepper(class_name, config, steps)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(math.isfinite(value) for value in (*ours.schedule.sigmas, *ours.schedule.alphas))
        assert ours.schedule.num_steps == steps


def test_trained_betas_are_used():
    betas = torch.linspace(0.001, 0.01, 1000).tolist()
    ours = stepper(trained_betas=betas)
    theirs = DDIMScheduler(trained_betas=betas)
    assert ours.schedule.alphas[-1] == pytest.approx(float(theirs.alphas_cumprod[1]) ** 0.5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_config_survives_json(name):
    class_name, config = scheduler_for(name, SD)
    assert checked_scheduler_config(class_name, parse_scheduler_config(json.dumps(config))) == config
