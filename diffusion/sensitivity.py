"""How far an error in the prediction of one step moves the latents."""

from __future__ import annotations

import math

from diffusion.schedule import Schedule


def ddim_sensitivities(schedule: Schedule, prediction_type: str) -> tuple[float, ...]:
    """Return c_i = |d x_{i+1} / d prediction_i| of a DDIM step, for each step; the step is linear in the prediction.

    x' = alpha' * x0 + sigma' * epsilon (arXiv 2010.02502, eq. 12), x0 and epsilon in terms of the prediction:

        epsilon          |sigma' - alpha' * sigma / alpha|
        sample           |alpha' - sigma' * alpha / sigma|
        v_prediction     |sigma' * alpha - alpha' * sigma| / sqrt(alpha^2 + sigma^2)
        flow_prediction  |sigma' * alpha - alpha' * sigma| / (alpha + sigma); of a flow |sigma' - sigma|

    Euler's step is the same one in another scaling (alpha 1), so it holds for Euler too. A multistep solver weighs a
    prediction in its next steps again; there it is the first-order part.

    The clean end is the schedule's: alpha' = 1, sigma' = 0. A scheduler that ends at its lowest noise level instead
    (`set_alpha_to_one` off, as Stable Diffusion's) is less sensitive at the last step than said here.

    Args:
        schedule: Signal and noise of each step.
        prediction_type: What the scheduler consumes.

    Raises:
        ValueError: If the type is unknown, or does not determine a step: epsilon without signal, x0 without noise.
    """
    # Names as in the formulas above: a prime is the step after.
    levels = zip(schedule.alphas, schedule.sigmas[:-1], (*schedule.alphas[1:], 1.0), schedule.sigmas[1:], strict=True)
    return tuple(abs(_derivative(prediction_type, *level)) for level in levels)


def latents_sensitivities(schedule: Schedule, prediction_type: str) -> tuple[float, ...]:
    """Return c_i of `ddim_sensitivities` in units of latents that preserve variance: c_i / hypot(alpha', sigma').

    So a tolerance means the same under Euler's scaling.
    """
    after = zip((*schedule.alphas[1:], 1.0), schedule.sigmas[1:], strict=True)
    sensitivities = ddim_sensitivities(schedule, prediction_type)
    return tuple(c / math.hypot(*level) for c, level in zip(sensitivities, after, strict=True))


def _derivative(prediction_type: str, alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> float:
    match prediction_type:
        case "epsilon" if alpha > 0.0:
            return next_sigma - next_alpha * sigma / alpha
        case "sample" if sigma > 0.0:
            return next_alpha - next_sigma * alpha / sigma
        case "epsilon" | "sample":
            raise ValueError(f"a step at alpha {alpha} and sigma {sigma} is not determined by {prediction_type}")
        case "v_prediction":
            return (next_sigma * alpha - next_alpha * sigma) / math.hypot(alpha, sigma)
        case "flow_prediction":
            return (next_sigma * alpha - next_alpha * sigma) / (alpha + sigma)
    raise ValueError(f"unknown prediction type {prediction_type[:80]!r}")
