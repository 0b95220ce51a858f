from __future__ import annotations

from torch import Tensor


def guide(negative: Tensor, positive: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Combine two predictions by classifier-free guidance.

    arXiv 2207.12598, eq. 6, in the form negative + scale * (positive - negative); then the rescaling of
    arXiv 2305.08891, eq. 15-16: the result gets the standard deviation of `positive`, picture by picture, and
    is mixed with the unrescaled one.

    Args:
        negative: Prediction for the negative prompt, `[B, C, H, W]`, float32.
        positive: Prediction for the prompt, same shape.
        scale: Guidance weight; 1 returns `positive` up to rounding.
        rescale: Share of the rescaled prediction, 0..1; 0 turns it off.

    Returns:
        `[B, C, H, W]`, float32, of the same prediction type.
    """
    guided = negative + scale * (positive - negative)
    if rescale == 0.0:
        return guided
    dims = tuple(range(1, positive.ndim))
    rescaled = guided * (positive.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return rescale * rescaled + (1 - rescale) * guided
