from __future__ import annotations

import math

from torch import Tensor


def convert_prediction(
    prediction: Tensor, latents: Tensor, *, source: str, target: str, alpha: float, sigma: float
) -> Tensor:
    """Say in terms of `target` what `prediction` says in terms of `source`.

    With x = alpha * x0 + sigma * epsilon and r = sqrt(alpha^2 + sigma^2), v = (alpha * epsilon - sigma * x0) / r
    (arXiv 2202.00512, section 4 and appendix D, where r is 1), and flow = epsilon - x0 (arXiv 2209.03003, where
    alpha + sigma is 1); all four are linear in each other, given x. A network's v knows nothing of the scheduler's
    scaling: r takes it out again (Euler's latents have alpha 1), as alpha + sigma does for a network's flow.

    Args:
        prediction: `[B, C, H, W]`, float32.
        latents: x at the same step, same shape, scheduler scaling; any float dtype.
        source: Prediction type of `prediction`: epsilon, v_prediction, flow_prediction or sample (x0).
        target: Prediction type to return.
        alpha: Signal level of the step in the latents' scaling (`Schedule.alphas`).
        sigma: Noise level of the step in the latents' scaling (`Schedule.sigmas`).

    Returns:
        `[B, C, H, W]`, float32; `prediction` itself when the types are equal.

    Raises:
        ValueError: If a type is unknown, or the step does not determine the answer: from epsilon
            without signal (alpha 0), or from x0 without noise (sigma 0).
    """
    if source == target:
        return prediction
    x = latents.float()
    denoised = _denoised(prediction, x, source, alpha, sigma)
    if target == "sample":
        return denoised
    if target == "epsilon":
        return _epsilon(prediction, denoised, x, source, alpha, sigma)
    if target == "v_prediction":
        epsilon = _epsilon(prediction, denoised, x, source, alpha, sigma)
        return (alpha * epsilon - sigma * denoised) / math.hypot(alpha, sigma)
    if target == "flow_prediction":
        return _epsilon(prediction, denoised, x, source, alpha, sigma) - denoised
    raise ValueError(f"unknown prediction type {target[:80]!r}")


def _denoised(prediction: Tensor, x: Tensor, source: str, alpha: float, sigma: float) -> Tensor:
    if source == "sample":
        return prediction
    if source == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return (alpha / norm * x - sigma * prediction) / norm
    if source == "flow_prediction":
        return (x - sigma * prediction) / (alpha + sigma)
    if source == "epsilon":
        if alpha == 0.0:
            raise ValueError("an epsilon prediction cannot be converted at zero signal (zero terminal SNR)")
        return (x - sigma * prediction) / alpha
    raise ValueError(f"unknown prediction type {source[:80]!r}")


def _epsilon(prediction: Tensor, denoised: Tensor, x: Tensor, source: str, alpha: float, sigma: float) -> Tensor:
    if source == "epsilon":
        return prediction
    if source == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return (alpha * prediction + sigma / norm * x) / norm
    if source == "flow_prediction":
        return (x + alpha * prediction) / (alpha + sigma)
    if sigma == 0.0:
        raise ValueError("a sample prediction cannot be converted at zero noise")
    return (x - alpha * denoised) / sigma
