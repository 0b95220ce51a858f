import json
from dataclasses import replace

import pytest

from diffusion.compatibility import check_pair
from diffusion.model import ModelInfo

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CLOUD = ModelInfo(
    name="large",
    fingerprint="a" * 16,
    family="sd",
    prediction_type="epsilon",
    latent_channels=4,
    layout="BCHW",
    vae_scale_factor=8,
    vae_scaling_factor=0.18215,
    vae_shift_factor=0.0,
    vae_fingerprint="b" * 16,
    text_encoder_fingerprint="c" * 16,
    scheduler_class="PNDMScheduler",
    scheduler_config=json.dumps(SCHEDULER | {"skip_prk_steps": True}),
    default_height=512,
    default_width=512,
    num_parameters=860_000_000,
    dtype="float16",
    device="cuda",
)
EDGE = replace(
    CLOUD,
    name="small",
    fingerprint="d" * 16,
    num_parameters=320_000_000,
    default_height=256,
    dtype="float32",
    device="cpu",
    scheduler_class="DDIMScheduler",
    scheduler_config=json.dumps(SCHEDULER | {"set_alpha_to_one": True}),
)


def test_models_that_differ_in_size_and_precision_only_fit_without_a_word():
    outcome = check_pair(CLOUD, EDGE)
    assert outcome.refusal is None
    assert outcome.warnings == ()
    assert not outcome.convert


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "cogvideox"),
        ("latent_channels", 16),
        ("layout", "BFCHW"),
        ("vae_scale_factor", 16),
    ],
)
def test_different_latents_are_refused_with_both_values(field, value):
    outcome = check_pair(CLOUD, replace(EDGE, **{field: value}))
    assert outcome.refusal is not None
    assert "\n" not in outcome.refusal
    assert str(value) in outcome.refusal
    assert str(getattr(CLOUD, field)) in outcome.refusal


def test_another_prediction_type_is_converted():
    outcome = check_pair(CLOUD, replace(EDGE, prediction_type="v_prediction"))
    assert outcome.convert
    assert outcome.refusal is None


def test_the_prediction_type_in_the_scheduler_config_is_no_warning():
    config = json.dumps(SCHEDULER | {"prediction_type": "v_prediction"})
    outcome = check_pair(CLOUD, replace(EDGE, prediction_type="v_prediction", scheduler_config=config))
    assert outcome.convert
    assert outcome.warnings == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vae_scaling_factor", 0.13025),
        ("vae_shift_factor", 0.5),
        ("vae_fingerprint", "e" * 16),
        ("text_encoder_fingerprint", "f" * 16),
    ],
)
def test_what_costs_quality_is_a_warning_with_both_values(field, value):
    outcome = check_pair(CLOUD, replace(EDGE, **{field: value}))
    assert outcome.refusal is None
    (warning,) = outcome.warnings
    assert str(value) in warning
    assert str(getattr(CLOUD, field)) in warning


def test_a_scheduler_difference_names_the_key_and_both_values():
    config = json.dumps(SCHEDULER | {"beta_end": 0.02, "rescale_betas_zero_snr": True})
    outcome = check_pair(CLOUD, replace(EDGE, scheduler_config=config))
    assert outcome.warnings == (
        "scheduler beta_end differs: cloud 0.012, edge 0.02; the cloud's is used for both",
        "scheduler rescale_betas_zero_snr differs: cloud False, edge True; the cloud's is used for both",
    )


FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
WAN = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("own_class", "ours", "theirs", "said"),
    [
        (FLOW_EULER, {"shift": 3.0}, {"shift": 1.0}, ["shift differs: cloud 3.0, edge 1.0"]),
        (FLOW_EULER, DYNAMIC, DYNAMIC | {"max_shift": 1.3}, ["max_shift differs: cloud 1.15, edge 1.3"]),
        (
            "UniPCMultistepScheduler",
            WAN | {"flow_shift": 5.0},
            WAN | {"flow_shift": 3.0},
            ["flow_shift differs: cloud 5.0, edge 3.0"],
        ),
        (
            "CogVideoXDDIMScheduler",
            {"snr_shift_scale": 1.0},
            {"snr_shift_scale": 3.0},
            ["snr_shift_scale differs: cloud 1.0, edge 3.0"],
        ),
        (FLOW_EULER, DYNAMIC, DYNAMIC, []),
    ],
)
def test_shifts_that_differ_are_a_warning_with_both_values(own_class, ours, theirs, said):
    cloud = replace(CLOUD, scheduler_class=own_class, scheduler_config=json.dumps(ours))
    edge = replace(EDGE, scheduler_class=own_class, scheduler_config=json.dumps(theirs))
    outcome = check_pair(cloud, edge)
    assert outcome.refusal is None
    assert [warning.removeprefix("scheduler ").split(";")[0] for warning in outcome.warnings] == said


def test_one_flow_by_two_classes_is_compared_by_its_shift():
    cloud = replace(
        CLOUD, scheduler_class="UniPCMultistepScheduler", scheduler_config=json.dumps(WAN | {"flow_shift": 5.0})
    )
    edge = replace(EDGE, scheduler_class=FLOW_EULER, scheduler_config='{"shift": 5.0}')
    assert check_pair(cloud, edge).warnings == ()
    (warning,) = check_pair(cloud, replace(edge, scheduler_config='{"shift": 1.0}')).warnings
    assert warning.startswith("scheduler flow_shift differs: cloud 5.0, edge 1.0;")


def test_schedulers_of_another_kind_are_a_warning_and_no_refusal():
    edge = replace(EDGE, scheduler_class=FLOW_EULER, scheduler_config='{"shift": 3.0}')
    outcome = check_pair(CLOUD, edge)
    assert outcome.refusal is None
    assert outcome.warnings == (
        f"scheduler differs: cloud PNDMScheduler, edge {FLOW_EULER}; the cloud's is used for both",
    )


def test_long_values_are_cut_in_warnings():
    config = json.dumps(SCHEDULER | {"trained_betas": [0.01] * 1000})
    (warning,) = check_pair(CLOUD, replace(EDGE, scheduler_config=config)).warnings
    assert len(warning) < 200


@pytest.mark.parametrize("text", ["", "[]", '{"beta_end": "x"}'])
def test_a_malformed_remote_scheduler_is_refused(text):
    with pytest.raises(ValueError, match="scheduler config"):
        check_pair(replace(CLOUD, scheduler_config=text), EDGE)
