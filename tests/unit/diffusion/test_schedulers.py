import inspect
import json
import math

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.placement import _kept_steps
from diffusion.scheduler_config import MAX_CONFIG_CHARS, default_scheduler, known_schedulers
from diffusion.scheduler_fields import FIELDS, checked_scheduler_config
from diffusion.schedulers import SCHEDULERS, Stepper, parse_scheduler_config, scheduler_for

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
BY_BETAS = known_schedulers("PNDMScheduler", SD)
ZERO_SNR = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def stepper(steps: int = 50, **changes: object) -> Stepper:
    return Stepper(*scheduler_for("ddim", SD | changes, own_class="PNDMScheduler"), steps)


def test_every_name_has_a_class_that_can_be_built():
    for name in BY_BETAS:
        assert Stepper(*scheduler_for(name, SD, own_class="PNDMScheduler"), 4).schedule.num_steps == 4


# Keys that say nothing by themselves: of flow sigmas, of networks that predict a variance, of Karras sigmas.
WITHOUT_MEANING = {
    *("flow_shift", "time_shift_type", "shift_terminal", "use_dynamic_shifting"),
    *("variance_type", "sigma_min", "sigma_max"),
}


# Keys that are ours, of classes that diffusers configures by arguments.
OURS = {"FlowMatchEulerDiscreteScheduler": {"timestep_spacing"}, "CogVideoXDPMScheduler": {"noise_seed"}}


@pytest.mark.parametrize("class_name", FIELDS)
def test_known_fields_and_defaults_are_those_of_diffusers(class_name):
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    theirs = {key: parameter.default for key, parameter in parameters.items() if key != "self"}
    ours = {key: field.default for key, field in FIELDS[class_name].items() if key not in OURS.get(class_name, ())}
    assert ours == {key: theirs[key] for key in ours}
    assert set(theirs) - set(ours) <= WITHOUT_MEANING


@pytest.mark.parametrize(("name", "class_name"), BY_BETAS.items())
def test_config_of_another_class_becomes_what_from_config_makes_of_it(name, class_name):
    theirs = getattr(diffusers, class_name).from_config(PNDMScheduler.from_config(SD).config).config
    ours_name, ours = scheduler_for(name, SD, own_class="PNDMScheduler")
    assert ours_name == class_name
    assert ours == {key: theirs[key] for key in ours}


def test_name_of_a_solver_stands_above_what_the_model_says_of_it():
    model = SD | {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun", "thresholding": True}
    config = scheduler_for("dpmpp-2m", model, own_class="PNDMScheduler")[1]
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
        scheduler_for(name, SD | change, own_class="PNDMScheduler")


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


@pytest.mark.parametrize("name", BY_BETAS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
# 61 and 103: "trailing" in diffusers makes one timestep more, -1.
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, 25, 50, 61, 103, 333, 998])
def test_any_step_count_is_placed_exactly(name, spacing, steps):
    schedule = Stepper(
        *scheduler_for(name, SD | {"timestep_spacing": spacing}, own_class="PNDMScheduler"), steps
    ).schedule
    assert schedule.num_steps == steps
    assert schedule.timesteps[0] < 1000
    assert schedule.timesteps[-1] >= 0
    assert schedule.sigmas[-2] > schedule.sigmas[-1] == 0.0


def test_a_scheduler_that_is_longer_than_models_are_is_not_kept():
    _kept_steps.cache_clear()
    assert stepper(num_train_timesteps=1001).schedule.num_steps == 50
    assert _kept_steps.cache_info().currsize == 0
    # The same again is a copy: neither moves the other.
    first, second = (Stepper(*scheduler_for("dpmpp-2m", SD, own_class="PNDMScheduler"), 4) for _ in range(2))
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
    ours = Stepper(*scheduler_for("ddim", config, own_class="PNDMScheduler"), 20)
    assert ours.schedule.alphas[0] == 0.0
    assert ours.step(torch.ones(1, 1, 2, 2), 0, torch.ones(1, 1, 2, 2)).isfinite().all()
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Stepper(*scheduler_for("ddim", ZERO_SNR, own_class="PNDMScheduler"), 20)


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
    with pytest.raises(ValueError, match="scheduler 'heun' is not known: choose one of ddim, dpmpp-2m, unipc, euler"):
        scheduler_for("heun", SD, own_class="PNDMScheduler")


@pytest.mark.parametrize(
    ("own_class", "config", "default", "known", "unfit"),
    [
        ("PNDMScheduler", {}, "ddim", {"ddim", "dpmpp-2m", "unipc", "euler"}, "dpm"),
        ("UniPCMultistepScheduler", {}, "ddim", {"ddim", "dpmpp-2m", "unipc", "euler"}, "dpm"),
        ("CogVideoXDDIMScheduler", {}, "ddim", {"ddim", "dpm"}, "unipc"),
        ("CogVideoXDPMScheduler", {}, "ddim", {"ddim", "dpm"}, "euler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "euler", {"euler", "unipc", "dpmpp-2m"}, "ddim"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "unipc", {"euler", "unipc", "dpmpp-2m"}, "ddim"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "dpmpp-2m", {"euler", "unipc", "dpmpp-2m"}, "dpm"),
    ],
)
def test_own_scheduler_says_which_names_a_model_takes_and_which_is_its_default(
    own_class, config, default, known, unfit
):
    assert default_scheduler(own_class, config) == default
    assert set(known_schedulers(own_class, config)) == known
    assert known | {unfit} <= set(SCHEDULERS)
    with pytest.raises(
        ValueError, match=f"'{unfit}' does not run this model \\({own_class}\\): choose one of {default}"
    ):
        scheduler_for(unfit, config, own_class=own_class)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '"' + "x" * MAX_CONFIG_CHARS + '"'])
def test_config_text_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="scheduler config"):
        parse_scheduler_config(text)


_ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2000),
    st.integers(),
    st.floats(),
    st.sampled_from(["linear", "epsilon", "flow_prediction", "trailing", "exponential", ""]),
)
_SHIFTS = st.one_of(st.floats(0.001, 1000), st.sampled_from([0.001, 0.999, 1.0, 3.0, 1000.0]))
_MUS = st.one_of(st.floats(-100, 100), st.sampled_from([-100.0, -1e-300, 0.0, 1e-300, 0.5, 100.0]))
_PLAUSIBLE = {
    "num_train_timesteps": st.integers(1, 1200),
    "beta_start": st.floats(1e-9, 0.999),
    "beta_end": st.floats(1e-9, 0.999),
    "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample", "flow_prediction"]),
    "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
    "steps_offset": st.integers(0, 1200),
    "rescale_betas_zero_snr": st.booleans(),
    "thresholding": st.booleans(),
    "snr_shift_scale": _SHIFTS,
    "set_alpha_to_one": st.booleans(),
    "noise_seed": st.integers(0, 2**64 - 1),
    "use_flow_sigmas": st.booleans(),
    "flow_shift": _SHIFTS,
    "shift": _SHIFTS,
    "use_dynamic_shifting": st.booleans(),
    "base_shift": _MUS,
    "max_shift": _MUS,
    "time_shift_type": st.sampled_from(["exponential", "linear"]),
}


@st.composite
def _configs(draw):
    """Return a class and a configuration that uses its keys; about half are such that a flow can be placed."""
    class_name = draw(st.sampled_from(list(FIELDS)))
    plausible = {key: values for key, values in _PLAUSIBLE.items() if key in FIELDS[class_name]}
    anything = dict.fromkeys(FIELDS[class_name], _ANYTHING)
    config = draw(
        st.one_of(st.fixed_dictionaries({}, optional=plausible), st.fixed_dictionaries({}, optional=anything))
    )
    if "flow_shift" in FIELDS[class_name] and draw(st.booleans()):
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if draw(st.booleans()) and "base_shift" in config:
        config["max_shift"] = config["base_shift"]
    return class_name, config


@settings(max_examples=500, deadline=None)
@given(chosen=_configs(), steps=st.integers(-1, 60))
def test_any_config_gives_a_finite_schedule_and_finite_steps_or_one_line(chosen, steps):
    class_name, config = chosen
    try:
        ours = Stepper(class_name, config, steps)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    schedule = ours.schedule
    assert all(math.isfinite(value) for value in (*schedule.sigmas, *schedule.alphas, *schedule.timesteps))
    assert schedule.num_steps == steps
    latents = torch.full((1, 1, 2, 2), 0.5)
    for index in {0, 1, steps // 2, steps - 1} & set(range(steps)):
        ours.load_state({}, step_index=index)
        assert ours.step(latents, index, latents).isfinite().all()


def test_trained_betas_are_used():
    betas = torch.linspace(0.001, 0.01, 1000).tolist()
    ours = stepper(trained_betas=betas)
    theirs = DDIMScheduler(trained_betas=betas)
    assert ours.schedule.alphas[-1] == pytest.approx(float(theirs.alphas_cumprod[1]) ** 0.5)


@pytest.mark.parametrize("name", BY_BETAS)
def test_config_survives_json(name):
    class_name, config = scheduler_for(name, SD, own_class="PNDMScheduler")
    assert checked_scheduler_config(class_name, parse_scheduler_config(json.dumps(config))) == config
