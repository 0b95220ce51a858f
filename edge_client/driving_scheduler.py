"""The one scheduler that drives both models of a generation: the cloud's wherever there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffusion.compatibility import Described
from diffusion.schedule import Schedule
from diffusion.scheduler_config import scheduler_config_at, scheduler_for
from diffusion.schedulers import Stepper
from diffusion.tensors import from_array
from wire.errors import IncompatibleModels, ProtocolError
from wire.messages import Opened, State


class DrivingScheduler:
    """Makes the stepper from what the cloud agreed to, and holds the cloud to what was asked.

    Args:
        name: Command-line name of the update rule that was asked for.
        model: Whose scheduler configuration is taken, for the case that no cloud says anything that can be used.
        noise_seed: Seed of the generation, for a scheduler that adds noise.
        num_inference_steps: Of the whole trajectory.
        latents_shape: `[B, C, H, W]` that the edge model works on.
        device: Of the edge model.

    Raises:
        ValueError: If no such scheduler runs this model.
    """

    def __init__(
        self,
        name: str,
        model: Described,
        *,
        noise_seed: int,
        num_inference_steps: int,
        latents_shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.stepper: Stepper
        self._agreed: Stepper | None = None
        config = scheduler_config_at(model.scheduler_config, latents_shape)
        self._asked = scheduler_for(name, config, own_class=model.scheduler_class, noise_seed=noise_seed)
        self._num_inference_steps = num_inference_steps
        self._latents_shape = latents_shape
        self._device = device

    def agree(self, opened: Opened) -> None:
        """Make the stepper that the cloud names.

        Raises:
            EcdiffError: The edge model cannot go on with it.
        """
        if opened.latents_shape != self._latents_shape:
            raise IncompatibleModels(
                f"the cloud works on latents of shape {opened.latents_shape}, the edge on {self._latents_shape}"
            )
        asked, _ = self._asked
        if opened.scheduler_class != asked:
            raise ProtocolError(f"the cloud steps by {opened.scheduler_class}, the edge asked for {asked}")
        try:
            stepper = self._make(opened.scheduler_class, json.loads(opened.scheduler_config))
        except ValueError as error:
            raise ProtocolError(f"the cloud's scheduler cannot be used: {error}") from error
        if self._agreed is None:
            self.stepper = self._agreed = stepper
        elif stepper.config != self._agreed.config:
            raise ProtocolError("this cloud configures the scheduler otherwise than the one that began")
        schedule = self.stepper.schedule
        for what, ours, theirs in (
            ("timesteps", schedule.timesteps, opened.timesteps),
            ("sigmas", schedule.sigmas, opened.sigmas),
        ):
            # Another release may sum the betas in another order: float32 leaves the last noise levels four digits.
            if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-3):
                raise ProtocolError(f"the cloud's {what} are not those of the scheduler that it names")

    def load_history(self, opened: Opened, state: State) -> None:
        """Load the solver's history that the cloud hands over.

        Raises:
            ProtocolError: It does not fit the scheduler that the cloud named.
        """
        history = {name: from_array(value) for name, value in state.scheduler_state.items()}
        try:
            self.stepper.load_state(history, step_index=state.step_index)
        except ValueError as error:
            raise ProtocolError(f"the scheduler state of {opened.scheduler_class} cannot be used: {error}") from error

    def asked_schedule(self) -> Schedule:
        """Return the schedule that was asked for: no other is agreed to."""
        return self._make(*self._asked).schedule

    def be_alone(self) -> None:
        """Make the stepper without a cloud: there is none, or it agreed to what cannot be used."""
        self.stepper = self._make(*self._asked)

    def _make(self, class_name: str, config: Mapping[str, Any]) -> Stepper:
        return Stepper(class_name, config, self._num_inference_steps, self._device)
