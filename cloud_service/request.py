"""An `Open` that passed every check, with what it asks for already built."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.noise import draw_noise
from diffusion.predictors import Predictor
from diffusion.schedulers import Stepper
from diffusion.tensors import from_array
from orchestrator.refresh import RefreshPolicy
from wire.messages import Codec, Noise, Open, Seed, State


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an accepted `Open` amounts to.

    Attributes:
        open: The message, every check passed.
        latents_shape: In the model's layout.
        guided: Whether classifier-free guidance needs a second, negative row.
        codec: Chosen from those that the client accepts.
        stepper: The scheduler of this generation.
        start_step: First step that the cloud runs.
        refresh: Its refresh policy.
        predictor: Its predictor.
        companion: A predictor of another order, where the refresh policy measures the embedded error.
    """

    open: Open
    latents_shape: tuple[int, ...]
    codec: Codec
    stepper: Stepper
    start_step: int
    refresh: RefreshPolicy
    predictor: Predictor
    companion: Predictor | None
    guided: bool

    def initial_latents(self) -> Tensor:
        """Return x at the first step, of `latents_shape`, scheduler scaling."""
        match self.open.start:
            case Seed(seed=seed):
                noise = draw_noise(self.latents_shape, seed)
            case Noise(noise=array):
                noise = from_array(array).float()
            case State(latents=array):
                return from_array(array)
        return noise * self.stepper.schedule.init_noise_sigma
