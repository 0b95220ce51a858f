from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Where a trajectory passes: at step i the latents are `alphas[i] * x0 + sigmas[i] * noise`.

    Attributes:
        timesteps: What the network is fed at each step, noisiest first, strictly falling.
        sigmas: Noise level at each step, and 0 for the clean latents after the last one; one longer
            than `timesteps`. sqrt(1 - abar) for variance-preserving schedulers (DDIM, DPM-Solver++, UniPC),
            sqrt(1 / abar - 1) for Euler; of a flow the part of noise.
        alphas: Signal level at each step; sqrt(abar) for variance-preserving schedulers, 1 for Euler,
            1 - sigma for a flow.
        init_noise_sigma: Factor from standard normal noise to the latents of step 0.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    init_noise_sigma: float = 1.0

    def __post_init__(self) -> None:
        steps = len(self.timesteps)
        if steps < 1:
            raise ValueError("a schedule needs at least one step")
        if len(self.sigmas) != steps + 1 or len(self.alphas) != steps:
            raise ValueError(
                f"{steps} timesteps need {steps + 1} sigmas and {steps} alphas, "
                f"not {len(self.sigmas)} and {len(self.alphas)}"
            )
        if any(later >= earlier for earlier, later in pairwise(self.timesteps)):
            raise ValueError("timesteps must fall strictly from step to step")

    @property
    def num_steps(self) -> int:
        """Steps of the whole trajectory."""
        return len(self.timesteps)
