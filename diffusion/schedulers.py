from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusion.schedule import Schedule
from diffusion.scheduler_config import (
    SCHEDULERS,
    SchedulerConfig,
    checked_scheduler_config,
    parse_scheduler_config,
    scheduler_for,
)

__all__ = ["SCHEDULERS", "SchedulerConfig", "Stepper", "parse_scheduler_config", "scheduler_for"]

_CLASSES: dict[str, Any] = {"DDIMScheduler": DDIMScheduler}


class Stepper:
    """One scheduler of diffusers, for one trajectory.

    Timesteps are kept as Python numbers: a timestep tensor on a GPU would make each step wait for it.

    Args:
        class_name: A class of `SCHEDULERS`.
        config: Its configuration, possibly from the other end; checked here.
        num_inference_steps: Steps of the whole trajectory.
        device: Where the latents live.

    Raises:
        ValueError: If the configuration is malformed or has no such number of steps.
    """

    def __init__(
        self, class_name: str, config: Mapping[str, Any], num_inference_steps: int, device: torch.device | str = "cpu"
    ) -> None:
        self.class_name = class_name
        self.config: SchedulerConfig = checked_scheduler_config(class_name, config)
        self.device = torch.device(device)
        trained = self.config["num_train_timesteps"]
        if not 1 <= num_inference_steps <= trained:
            raise ValueError(f"num_inference_steps must lie in 1..{trained}, not {num_inference_steps}")
        self._scheduler = _CLASSES[class_name].from_config(self.config)
        self._scheduler.set_timesteps(num_inference_steps)
        # With "trailing" spacing some step counts get one more by rounding, -1, which is no timestep.
        self._timesteps: list[int] = self._scheduler.timesteps.tolist()[:num_inference_steps]
        if len(self._timesteps) != num_inference_steps or self._timesteps[0] >= trained or self._timesteps[-1] < 0:
            raise ValueError(
                f"the model's scheduler cannot place {num_inference_steps} steps with timestep_spacing "
                f"{self.config['timestep_spacing']} and steps_offset {self.config['steps_offset']}"
            )
        self.schedule = self._make_schedule()

    def _make_schedule(self) -> Schedule:
        abar = self._scheduler.alphas_cumprod[self._timesteps].double()
        if not bool(((abar >= 0) & (abar <= 1)).all()):  # NaN is neither
            raise ValueError("scheduler config: the betas give signal levels that are not between 0 and 1")
        schedule = Schedule(
            timesteps=tuple(float(timestep) for timestep in self._timesteps),
            sigmas=(*(1 - abar).sqrt().tolist(), 0.0),
            alphas=tuple(abar.sqrt().tolist()),
            init_noise_sigma=float(self._scheduler.init_noise_sigma),
        )
        # epsilon says nothing about x0 where there is no signal: x0 = (x - sigma * epsilon) / 0.
        if self.prediction_type == "epsilon" and schedule.alphas[0] == 0.0:
            raise ValueError("epsilon prediction cannot start at zero terminal SNR (rescale_betas_zero_snr)")
        return schedule

    @property
    def prediction_type(self) -> str:
        """What `step` takes: epsilon, v_prediction or sample."""
        return str(self.config["prediction_type"])

    def scale_model_input(self, latents: Tensor, step_index: int) -> Tensor:
        """Return the latents as the network wants them at `step_index`, same shape and dtype."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step_index])
        return scaled

    def step(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """Return x at `step_index + 1`, float32.

        DDIM without added noise (eta 0): arXiv 2010.02502, eq. 12, by diffusers' own `step`.

        Args:
            noise_pred: `[B, C, H, W]`, of `prediction_type`.
            step_index: The step that is run, 0-based.
            latents: x at `step_index`, `[B, C, H, W]`, scheduler scaling.
        """
        previous: Tensor = self._scheduler.step(
            noise_pred.float(), self._timesteps[step_index], latents.float(), return_dict=False
        )[0]
        return previous

    def state(self) -> dict[str, Tensor]:
        """Return the history that must travel with the latents; DDIM has none."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the history that `state` returned elsewhere.

        Raises:
            ValueError: If it holds anything that this scheduler does not keep.
        """
        if state:
            raise ValueError(f"{self.class_name} keeps no history, but the state has {', '.join(sorted(state))[:200]}")
