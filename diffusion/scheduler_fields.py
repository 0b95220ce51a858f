"""What a configuration of each scheduler class may hold.

A configuration can arrive from the other end of a connection, so every key and value is checked
before a class of diffusers sees it. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

SchedulerConfig: TypeAlias = dict[str, Any]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What schedulers that go by betas take; those with flow sigmas take `FLOW` alone."""
FLOW = "flow_prediction"


@dataclass(frozen=True, kw_only=True)
class Field:
    """What one key may hold: one of `choices`, or a `kind` within `minimum..maximum`.

    `named` marks what the scheduler's name says ("2m" is order 2): a model's own value is not taken over.
    """

    default: Any
    kind: type[int] | type[float] | type[bool] | None = None
    minimum: float = -math.inf
    maximum: float = math.inf
    choices: tuple[Any, ...] = ()
    named: bool = False

    def check(self, key: str, value: Any) -> Any:
        """Return the value of `key`.

        Raises:
            ValueError: If the key cannot hold it.
        """
        if self.choices:
            if value not in self.choices:
                known = ", ".join(str(choice) for choice in self.choices)
                what = "one of " if len(self.choices) > 1 else ""
                raise ValueError(f"scheduler config: {key} must be {what}{known}, not {repr(value)[:80]}")
            return value
        # bool is an int to Python, but a flag is not a count.
        if self.kind is bool or isinstance(value, bool):
            right = self.kind is bool and isinstance(value, bool)
        else:
            right = isinstance(value, int) or (self.kind is float and isinstance(value, float))
        if not right:
            raise ValueError(f"scheduler config: {key} cannot be {value!r}")
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"scheduler config: {key} must lie in {self.minimum}..{self.maximum}, not {value}")
        return value


def _only(value: Any, *, named: bool = False) -> Field:
    """Return the field of a key of which only diffusers' default is run here; another value is refused by name."""
    return Field(default=value, choices=(value,), named=named)


def _noise_fields(timestep_spacing: str) -> dict[str, Field]:
    """Return what every class knows: which noise levels there are, and where the steps are placed."""
    return {
        "num_train_timesteps": Field(default=1000, kind=int, minimum=1, maximum=100_000),
        "beta_start": Field(default=0.0001, kind=float, minimum=1e-9, maximum=0.999999),
        "beta_end": Field(default=0.02, kind=float, minimum=1e-9, maximum=0.999999),
        "beta_schedule": Field(default="linear", choices=("linear", "scaled_linear", "squaredcos_cap_v2")),
        "trained_betas": Field(default=None),
        "steps_offset": Field(default=0, kind=int, minimum=0, maximum=100_000),
        "prediction_type": Field(default="epsilon", choices=PREDICTION_TYPES),
        "timestep_spacing": Field(default=timestep_spacing, choices=("leading", "trailing", "linspace")),
        "rescale_betas_zero_snr": Field(default=False, kind=bool),
    }


_SHIFT = Field(default=1.0, kind=float, minimum=1e-3, maximum=1e3)
_THRESHOLD_FIELDS: dict[str, Field] = {
    "thresholding": Field(default=False, kind=bool),
    "dynamic_thresholding_ratio": Field(default=0.995, kind=float, minimum=0.0, maximum=1.0),
    "sample_max_value": Field(default=1.0, kind=float, minimum=1.0, maximum=1e9),
}
# Steps are placed by timestep. Other ways can place two steps at one timestep, or need scipy.
_SIGMA_FIELDS: dict[str, Field] = {
    "use_karras_sigmas": _only(False),
    "use_exponential_sigmas": _only(False),
    "use_beta_sigmas": _only(False),
    "final_sigmas_type": _only("zero"),
}
# With them the latents are (1 - sigma) * x0 + sigma * noise. The betas then say nothing.
_FLOW_SIGMA_FIELDS: dict[str, Field] = {
    "prediction_type": Field(default="epsilon", choices=(*PREDICTION_TYPES, FLOW)),
    "use_flow_sigmas": Field(default=False, kind=bool),
    "flow_shift": _SHIFT,
    "use_dynamic_shifting": _only(False),
}
_DDIM_FIELDS: dict[str, Field] = {
    **_noise_fields("leading"),
    **_THRESHOLD_FIELDS,
    "clip_sample": Field(default=True, kind=bool),
    "set_alpha_to_one": Field(default=True, kind=bool),
    "clip_sample_range": Field(default=1.0, kind=float, minimum=1e-9, maximum=1e9),
}
_DPM_FIELDS: dict[str, Field] = {
    **_noise_fields("linspace"),
    **_THRESHOLD_FIELDS,
    **_SIGMA_FIELDS,
    "algorithm_type": _only("dpmsolver++", named=True),
    "solver_order": _only(2, named=True),
    "solver_type": _only("midpoint", named=True),
    "lower_order_final": Field(default=True, kind=bool),
    "euler_at_final": Field(default=False, kind=bool),
    "use_lu_lambdas": _only(False),
    **_FLOW_SIGMA_FIELDS,
    "lambda_min_clipped": _only(-math.inf),
}
_UNIPC_FIELDS: dict[str, Field] = {
    **_noise_fields("linspace"),
    **_THRESHOLD_FIELDS,
    **_SIGMA_FIELDS,
    "solver_order": _only(2, named=True),
    "solver_type": _only("bh2", named=True),
    "predict_x0": _only(True, named=True),
    "lower_order_final": _only(True),  # else the last step, to sigma 0, divides by zero
    "disable_corrector": _only([]),
    "solver_p": _only(None),
    **_FLOW_SIGMA_FIELDS,
    "shift_terminal": _only(None),
}
_EULER_FIELDS: dict[str, Field] = {
    **_noise_fields("linspace"),
    **_SIGMA_FIELDS,
    "interpolation_type": _only("linear"),
    "sigma_min": _only(None),
    "sigma_max": _only(None),
    "timestep_type": _only("discrete"),
}
_COGVIDEOX_FIELDS: dict[str, Field] = {
    **_noise_fields("leading"),
    "beta_start": Field(default=0.00085, kind=float, minimum=1e-9, maximum=0.999999),
    "beta_end": Field(default=0.012, kind=float, minimum=1e-9, maximum=0.999999),
    "beta_schedule": Field(default="scaled_linear", choices=("linear", "scaled_linear", "squaredcos_cap_v2")),
    "set_alpha_to_one": Field(default=True, kind=bool),
    "snr_shift_scale": Field(default=3.0, kind=float, minimum=1e-3, maximum=1e3),
    # Known, and used by no step of these classes.
    "clip_sample": Field(default=True, kind=bool),
    "clip_sample_range": Field(default=1.0, kind=float, minimum=1e-9, maximum=1e9),
    "sample_max_value": Field(default=1.0, kind=float, minimum=1.0, maximum=1e9),
}
_FLOW_EULER_FIELDS: dict[str, Field] = {
    "num_train_timesteps": Field(default=1000, kind=int, minimum=1, maximum=100_000),
    "shift": _SHIFT,
    "use_dynamic_shifting": Field(default=False, kind=bool),
    "base_shift": Field(default=0.5, kind=float, minimum=-100.0, maximum=100.0),
    "max_shift": Field(default=1.15, kind=float, minimum=-100.0, maximum=100.0),
    "base_image_seq_len": Field(default=256, kind=int, minimum=1, maximum=10_000_000),
    "max_image_seq_len": Field(default=4096, kind=int, minimum=1, maximum=10_000_000),
    "time_shift_type": Field(default="exponential", choices=("exponential", "linear")),
    # Ours: `linspace` is what `set_timesteps(n)` of diffusers does, `trailing` the sigmas 1 .. 1/n that FLUX's pipeline
    # passes by hand.
    "timestep_spacing": Field(default="linspace", choices=("linspace", "trailing")),
    "invert_sigmas": _only(False),
    "shift_terminal": _only(None),
    "use_karras_sigmas": _only(False),
    "use_exponential_sigmas": _only(False),
    "use_beta_sigmas": _only(False),
    "stochastic_sampling": _only(False),
}
FIELDS: dict[str, dict[str, Field]] = {
    "DDIMScheduler": _DDIM_FIELDS,
    "DPMSolverMultistepScheduler": _DPM_FIELDS,
    "UniPCMultistepScheduler": _UNIPC_FIELDS,
    "EulerDiscreteScheduler": _EULER_FIELDS,
    "CogVideoXDDIMScheduler": _COGVIDEOX_FIELDS,
    # Ours: the seed of what it adds to the first row of a batch; row j has the one j above.
    "CogVideoXDPMScheduler": _COGVIDEOX_FIELDS
    | {"noise_seed": Field(default=0, kind=int, minimum=0, maximum=2**64 - 1, named=True)},
    "FlowMatchEulerDiscreteScheduler": _FLOW_EULER_FIELDS,
}


"""Class of diffusers -> its keys; no other class is run."""


def checked_scheduler_config(class_name: str, config: Mapping[str, Any]) -> SchedulerConfig:
    """Return `config` with every key of `class_name` filled in; keys that start with `_` are dropped.

    Raises:
        ValueError: If the class is not in `FIELDS`, a key is not the class's own, or a value
            is of the wrong type or out of range.
    """
    fields = FIELDS.get(class_name)
    if fields is None:
        raise ValueError(f"scheduler class {class_name[:80]!r} is not one of {', '.join(FIELDS)}")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ValueError(f"scheduler config: {class_name} has no {', '.join(unknown)[:200]}")
    checked = {key: fields[key].check(key, value) for key, value in given.items() if key != "trained_betas"}
    merged = {key: field.default for key, field in fields.items()} | checked
    if "trained_betas" in fields:
        merged["trained_betas"] = _checked_betas(given.get("trained_betas"), merged["num_train_timesteps"])
    if "flow_shift" in fields and merged["use_flow_sigmas"] != (merged["prediction_type"] == FLOW):
        raise ValueError(
            f"scheduler config: prediction_type {merged['prediction_type']} does not go with "
            f"use_flow_sigmas {merged['use_flow_sigmas']}"
        )
    return merged


def _checked_betas(betas: Any, num_train_timesteps: int) -> list[float] | None:
    if betas is None:
        return None
    # A shorter list would index past its end in the middle of a generation.
    if not isinstance(betas, list) or len(betas) != num_train_timesteps:
        raise ValueError(f"scheduler config: trained_betas must be a list of {num_train_timesteps} numbers")
    if not all(isinstance(beta, float) and 0.0 < beta < 1.0 for beta in betas):
        raise ValueError("scheduler config: trained_betas must lie between 0 and 1")
    return list(betas)
