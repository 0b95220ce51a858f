from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Draw standard normal noise that is the same on every machine.

    Each picture has a CPU generator of its own, so picture j of a batch is picture 0 of `seed + j`.

    Args:
        shape: `[B, C, H, W]` in latent pixels.
        seed: Seed of the first picture, 0..2**64-1; the sum wraps there.

    Returns:
        `[B, C, H, W]`, float32, on the CPU, before the scheduler's `init_noise_sigma`.
    """
    pictures = []
    for index in range(shape[0]):
        generator = torch.Generator().manual_seed((seed + index) % 2**64)
        pictures.append(torch.randn((1, *shape[1:]), generator=generator, dtype=torch.float32))
    return torch.cat(pictures)
