from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

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
    return draw_next_noise(shape, seeded_generators(seed, shape[0]))


def seeded_generators(seed: int, num_images: int) -> list[torch.Generator]:
    """Return the CPU generators of a batch's pictures, of `seed`, `seed + 1`, ..."""
    return [torch.Generator().manual_seed((seed + index) % 2**64) for index in range(num_images)]


def draw_next_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw what comes next of each picture's generator; see `draw_noise`."""
    pictures = [torch.randn((1, *shape[1:]), generator=each, dtype=torch.float32) for each in generators]
    return torch.cat(pictures)


def step_generators(seed: int, step_index: int, num_images: int) -> list[torch.Generator]:
    """Return the CPU generators of the noise that a scheduler adds in one step, one for each picture.

    They depend on nothing else, so a step adds the same noise wherever it runs, and picture j of a batch has that of
    picture 0 of `seed + j`. A hash keeps them apart from the seeds that users choose for `draw_noise`.

    Args:
        seed: Seed of the first picture, 0..2**64-1; the sum wraps there.
        step_index: The step, 0-based.
        num_images: Pictures in the batch.
    """
    seeds = (f"{(seed + index) % 2**64}/{step_index}".encode() for index in range(num_images))
    digests = (int.from_bytes(blake2b(each, digest_size=8).digest()) for each in seeds)
    return [torch.Generator().manual_seed(digest) for digest in digests]
