from __future__ import annotations

from collections.abc import Callable

from diffusion.predictors.ecdiff import EcDiff
from diffusion.predictors.history import Chebyshev, Trend
from diffusion.predictors.interface import Predictor
from diffusion.predictors.polynomial import Polynomial, epsilon_linear, x0_linear
from diffusion.schedule import Schedule

PREDICTORS: dict[str, Callable[[Schedule, str, float], Predictor]] = {
    "reuse": lambda schedule, prediction_type, smoothing: Polynomial(schedule.timesteps, 0),
    "ecdiff": lambda schedule, prediction_type, smoothing: EcDiff(smoothing),
    "linear": lambda schedule, prediction_type, smoothing: Polynomial(schedule.timesteps, 1),
    "quadratic": lambda schedule, prediction_type, smoothing: Polynomial(schedule.timesteps, 2),
    "epsilon-linear": lambda schedule, prediction_type, smoothing: epsilon_linear(schedule, prediction_type),
    "x0-linear": lambda schedule, prediction_type, smoothing: x0_linear(schedule, prediction_type),
    "chebyshev": lambda schedule, prediction_type, smoothing: Chebyshev(schedule),
    "etc": lambda schedule, prediction_type, smoothing: Trend(schedule),
}
"""Name in a plan -> factory, given the schedule, the type that the scheduler consumes and the plan's smoothing."""

COMPANIONS: dict[str, str] = {
    "reuse": "linear",
    "ecdiff": "quadratic",
    "linear": "quadratic",
    "quadratic": "linear",
    "epsilon-linear": "quadratic",
    "x0-linear": "quadratic",
    "chebyshev": "linear",
    "etc": "quadratic",
}
"""Name -> a predictor of another order; how far the two are apart estimates the error (`Trajectory.embedded_error`)."""


def make_predictor(name: str, schedule: Schedule, *, prediction_type: str, smoothing: float = 0.0) -> Predictor:
    """Return a fresh predictor for one trajectory.

    Args:
        name: A key of `PREDICTORS`.
        schedule: The trajectory's.
        prediction_type: What its scheduler consumes: epsilon, v_prediction or sample.
        smoothing: a of EC-Diff; `ecdiff` only.

    Raises:
        ValueError: If there is no such predictor, or it has no meaning on this schedule.
    """
    if name not in PREDICTORS:
        raise ValueError(f"unknown predictor {name[:80]!r}; known: {', '.join(PREDICTORS)}")
    return PREDICTORS[name](schedule, prediction_type, smoothing)
