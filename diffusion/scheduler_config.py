"""Which schedulers there are, and what a configuration of one may hold.

A configuration can arrive from the other end of a connection, so every key and value is checked
before a class of diffusers sees it. No torch here: the command line lists `SCHEDULERS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

SchedulerConfig: TypeAlias = dict[str, Any]

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
"""Name on the command line -> class in diffusers. A new one also needs its fields in `_FIELDS`."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_CONFIG_CHARS = 2**18  # a config with 1,000 trained betas has about 25,000


@dataclass(frozen=True, kw_only=True)
class _Field:
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


def _only(value: Any, *, named: bool = False) -> _Field:
    """Return the field of a key of which only diffusers' default is run here; another value is refused by name."""
    return _Field(default=value, choices=(value,), named=named)


def _noise_fields(timestep_spacing: str) -> dict[str, _Field]:
    """Return what every class knows: which noise levels there are, and where the steps are placed."""
    return {
        "num_train_timesteps": _Field(default=1000, kind=int, minimum=1, maximum=100_000),
        "beta_start": _Field(default=0.0001, kind=float, minimum=1e-9, maximum=0.999999),
        "beta_end": _Field(default=0.02, kind=float, minimum=1e-9, maximum=0.999999),
        "beta_schedule": _Field(default="linear", choices=("linear", "scaled_linear", "squaredcos_cap_v2")),
        "trained_betas": _Field(default=None),
        "steps_offset": _Field(default=0, kind=int, minimum=0, maximum=100_000),
        "prediction_type": _Field(default="epsilon", choices=PREDICTION_TYPES),
        "timestep_spacing": _Field(default=timestep_spacing, choices=("leading", "trailing", "linspace")),
        "rescale_betas_zero_snr": _Field(default=False, kind=bool),
    }


_THRESHOLD_FIELDS: dict[str, _Field] = {
    "thresholding": _Field(default=False, kind=bool),
    "dynamic_thresholding_ratio": _Field(default=0.995, kind=float, minimum=0.0, maximum=1.0),
    "sample_max_value": _Field(default=1.0, kind=float, minimum=1.0, maximum=1e9),
}
# Steps are placed by timestep. Other ways can place two steps at one timestep, or need scipy.
_SIGMA_FIELDS: dict[str, _Field] = {
    "use_karras_sigmas": _only(False),
    "use_exponential_sigmas": _only(False),
    "use_beta_sigmas": _only(False),
    "final_sigmas_type": _only("zero"),
}
_DDIM_FIELDS: dict[str, _Field] = {
    **_noise_fields("leading"),
    **_THRESHOLD_FIELDS,
    "clip_sample": _Field(default=True, kind=bool),
    "set_alpha_to_one": _Field(default=True, kind=bool),
    "clip_sample_range": _Field(default=1.0, kind=float, minimum=1e-9, maximum=1e9),
}
_DPM_FIELDS: dict[str, _Field] = {
    **_noise_fields("linspace"),
    **_THRESHOLD_FIELDS,
    **_SIGMA_FIELDS,
    "algorithm_type": _only("dpmsolver++", named=True),
    "solver_order": _only(2, named=True),
    "solver_type": _only("midpoint", named=True),
    "lower_order_final": _Field(default=True, kind=bool),
    "euler_at_final": _Field(default=False, kind=bool),
    "use_lu_lambdas": _only(False),
    "use_flow_sigmas": _only(False),
    "lambda_min_clipped": _only(-math.inf),
}
_UNIPC_FIELDS: dict[str, _Field] = {
    **_noise_fields("linspace"),
    **_THRESHOLD_FIELDS,
    **_SIGMA_FIELDS,
    "solver_order": _only(2, named=True),
    "solver_type": _only("bh2", named=True),
    "predict_x0": _only(True, named=True),
    "lower_order_final": _only(True),  # else the last step, to sigma 0, divides by zero
    "disable_corrector": _only([]),
    "solver_p": _only(None),
    "use_flow_sigmas": _only(False),
    "use_dynamic_shifting": _only(False),
}
_EULER_FIELDS: dict[str, _Field] = {
    **_noise_fields("linspace"),
    **_SIGMA_FIELDS,
    "interpolation_type": _only("linear"),
    "sigma_min": _only(None),
    "sigma_max": _only(None),
    "timestep_type": _only("discrete"),
}
_FIELDS: dict[str, dict[str, _Field]] = {
    "DDIMScheduler": _DDIM_FIELDS,
    "DPMSolverMultistepScheduler": _DPM_FIELDS,
    "UniPCMultistepScheduler": _UNIPC_FIELDS,
    "EulerDiscreteScheduler": _EULER_FIELDS,
}


def parse_scheduler_config(text: str) -> SchedulerConfig:
    """Return the JSON object in `text`.

    Raises:
        ValueError: If it is too long, not JSON, or not an object.
    """
    if len(text) > MAX_CONFIG_CHARS:
        raise ValueError(f"scheduler config: {len(text)} characters, at most {MAX_CONFIG_CHARS} are read")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("scheduler config: not JSON") from error
    if not isinstance(config, dict):
        raise ValueError("scheduler config: not a JSON object")
    return config


def checked_scheduler_config(class_name: str, config: Mapping[str, Any]) -> SchedulerConfig:
    """Return `config` with every key of `class_name` filled in; keys that start with `_` are dropped.

    Raises:
        ValueError: If the class is not in `SCHEDULERS`, a key is not the class's own, or a value
            is of the wrong type or out of range.
    """
    fields = _FIELDS.get(class_name)
    if fields is None:
        raise ValueError(f"scheduler class {class_name[:80]!r} is not one of {', '.join(_FIELDS)}")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ValueError(f"scheduler config: {class_name} has no {', '.join(unknown)[:200]}")
    checked = {key: fields[key].check(key, value) for key, value in given.items() if key != "trained_betas"}
    merged = {key: field.default for key, field in fields.items()} | checked
    merged["trained_betas"] = _checked_betas(given.get("trained_betas"), merged["num_train_timesteps"])
    return merged


def scheduler_for(name: str, config: Mapping[str, Any]) -> tuple[str, SchedulerConfig]:
    """Return class name and configuration of scheduler `name` for a model with scheduler `config`.

    As `from_config` of diffusers does: the keys that both know are taken over, the rest of the
    model's keys belongs to another class and is left out. What the name says (solver, order) stands above the model's.

    Args:
        name: A key of `SCHEDULERS`.
        config: The model's own scheduler configuration, of whatever class.

    Raises:
        ValueError: If there is no such scheduler, or a value that it would take over is out of range.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name[:80]!r}; known: {', '.join(SCHEDULERS)}")
    class_name = SCHEDULERS[name]
    taken = [key for key, field in _FIELDS[class_name].items() if key in config and not field.named]
    return class_name, checked_scheduler_config(class_name, {key: config[key] for key in taken})


def _checked_betas(betas: Any, num_train_timesteps: int) -> list[float] | None:
    if betas is None:
        return None
    # A shorter list would index past its end in the middle of a generation.
    if not isinstance(betas, list) or len(betas) != num_train_timesteps:
        raise ValueError(f"scheduler config: trained_betas must be a list of {num_train_timesteps} numbers")
    if not all(isinstance(beta, float) and 0.0 < beta < 1.0 for beta in betas):
        raise ValueError("scheduler config: trained_betas must lie between 0 and 1")
    return list(betas)
