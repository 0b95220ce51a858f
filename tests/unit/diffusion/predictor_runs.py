"""Schedules with closed-form levels, and the error of a predictor along one of them."""

import math

import torch
from torch import Tensor

from diffusion.prediction_types import convert_prediction
from diffusion.predictors import Predictor, make_predictor
from diffusion.schedule import Schedule

# Uneven timesteps, as "trailing" and non-divisor step counts make them.
TIMESTEPS = (981.0, 961.0, 940.0, 921.0, 899.0, 881.0, 860.0, 838.0, 821.0, 799.0, 780.0)
OWN_TERMS = {"epsilon-linear": "epsilon", "x0-linear": "sample"}
"""Predictors that extrapolate in other terms than the scheduler's."""


def schedule(timesteps: tuple[float, ...] = TIMESTEPS) -> Schedule:
    """alpha = cos, sigma = sin of the timestep's share of a right angle; no signal at 1000."""
    angles = [timestep / 1000 * math.pi / 2 for timestep in timesteps]
    return Schedule(
        timesteps=timesteps,
        alphas=tuple(0.0 if angle == math.pi / 2 else math.cos(angle) for angle in angles),
        sigmas=(*(math.sin(angle) for angle in angles), 0.0),
    )


def make(
    name: str,
    *,
    timesteps: tuple[float, ...] = TIMESTEPS,
    consumed: str = "v_prediction",
    smoothing: float = 0.3,
) -> Predictor:
    return make_predictor(name, schedule(timesteps), prediction_type=consumed, smoothing=smoothing)


def tensor(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((1, 2, 2, 2), value, dtype=dtype)


def latents_at(step: int) -> Tensor:
    """Latents that move from step to step, along no polynomial."""
    return tensor(math.sin(7.0 * step))


def worst_error(
    predictor: Predictor,
    real_steps: set[int],
    function,
    *,
    timesteps: tuple[float, ...] = TIMESTEPS,
    own: str = "v_prediction",
    consumed: str = "v_prediction",
) -> float:
    """Run a trajectory and return the largest error at a step that is not real.

    `function` maps a step to the prediction of type `own`; the predictor is fed and asked in type `consumed`. In
    float64, so that a wrong rule cannot pass for rounding.
    """
    where, worst = schedule(timesteps), 0.0
    for step in range(len(timesteps)):
        levels = {"alpha": where.alphas[step], "sigma": where.sigmas[step]}
        expected = tensor(function(step), torch.float64)
        if step in real_steps:
            real = convert_prediction(expected, latents_at(step), source=own, target=consumed, **levels)
            predictor.observe(step, real, latents_at(step))
        else:
            predicted = predictor.predict(step, latents_at(step))
            answer = convert_prediction(predicted, latents_at(step), source=consumed, target=own, **levels)
            worst = max(worst, float((answer - expected).abs().max()))
    return worst
