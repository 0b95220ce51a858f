from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion.noise import step_generators
from diffusion.placement import MAX_NOISE_TO_SIGNAL, levels, placed
from diffusion.schedule import Schedule
from diffusion.scheduler_config import (
    SCHEDULERS,
    SchedulerConfig,
    checked_scheduler_config,
    default_scheduler,
    known_schedulers,
    parse_scheduler_config,
    scheduler_for,
)
from diffusion.scheduler_fields import FLOW

__all__ = [
    "SCHEDULERS",
    "SchedulerConfig",
    "Stepper",
    "default_scheduler",
    "known_schedulers",
    "parse_scheduler_config",
    "scheduler_for",
]

# What a solver's next step needs of its last ones, by how many of them it has made since its (re)start: x0 as
# predicted at the last step and at the one before, and the latents that the last step started from, corrected.
_HISTORIES: dict[str, tuple[frozenset[str], ...]] = {
    "DDIMScheduler": (frozenset(),),
    "EulerDiscreteScheduler": (frozenset(),),
    "FlowMatchEulerDiscreteScheduler": (frozenset(),),
    "CogVideoXDDIMScheduler": (frozenset(),),
    "CogVideoXDPMScheduler": (frozenset(), frozenset({"denoised_1"})),
    "DPMSolverMultistepScheduler": (frozenset(), frozenset({"denoised_1"})),
    "UniPCMultistepScheduler": (
        frozenset(),
        frozenset({"denoised_1", "last_latents"}),
        frozenset({"denoised_1", "denoised_2", "last_latents"}),
    ),
}
_WITH_NOISE = "CogVideoXDPMScheduler"


class Stepper:
    """One scheduler of diffusers, for one trajectory.

    A step is a function of the prediction, the latents and, for the multistep solvers, the history, which `state` and
    `load_state` carry to another Stepper of the same schedule. The solvers' own counters of lower orders follow from
    what the history holds. CogVideoX's DPM alone adds noise: that of a step depends on the configuration's `noise_seed`
    and the step index, wherever it runs.

    Timesteps are kept as Python numbers: a timestep tensor on a GPU would make each step wait for it.

    Args:
        class_name: A class of `diffusion.scheduler_fields.FIELDS`.
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
        self._scheduler = placed(class_name, self.config, num_inference_steps)
        self._timesteps: list[float] = self._scheduler.timesteps.tolist()
        falling = all(later < earlier for earlier, later in pairwise(self._timesteps))
        if len(self._timesteps) != num_inference_steps or not falling or not self._within(trained):
            raise ValueError(f"the model's scheduler cannot place {num_inference_steps} steps with {self._placing()}")
        self.schedule = self._make_schedule()
        self._history: dict[str, Tensor] = {}
        self._next_step = 0

    def _within(self, trained: int) -> bool:
        # A flow's noise has timestep `trained`, not trained - 1.
        return self._timesteps[0] < trained + self._is_flow_euler and self._timesteps[-1] >= 0

    def _placing(self) -> str:
        keys = ("timestep_spacing", "steps_offset", "use_flow_sigmas", "flow_shift", "shift", "base_shift")
        return " and ".join(f"{key} {self.config[key]}" for key in keys if self.config.get(key))

    def _make_schedule(self) -> Schedule:
        alphas, sigmas = levels(self.class_name, self.config, self._scheduler)
        schedule = Schedule(
            timesteps=tuple(float(timestep) for timestep in self._timesteps),
            sigmas=(*sigmas.tolist(), 0.0),
            alphas=tuple(alphas.tolist()),
            init_noise_sigma=1.0 if self._is_flow_euler else float(self._scheduler.init_noise_sigma),
        )
        # epsilon says nothing about x0 where there is no signal: x0 = (x - sigma * epsilon) / 0.
        if self.prediction_type == "epsilon" and schedule.alphas[0] * MAX_NOISE_TO_SIGNAL < schedule.sigmas[0]:
            raise ValueError("epsilon prediction cannot start at zero terminal SNR (rescale_betas_zero_snr)")
        return schedule

    @property
    def _is_flow_euler(self) -> bool:
        return self.class_name == "FlowMatchEulerDiscreteScheduler"

    @property
    def prediction_type(self) -> str:
        """What `step` takes: epsilon, v_prediction, sample or flow_prediction."""
        return FLOW if self._is_flow_euler else str(self.config["prediction_type"])

    @property
    def is_multistep(self) -> bool:
        """Whether a step uses earlier ones; without their history such a solver restarts at order 1."""
        return len(_HISTORIES[self.class_name]) > 1

    @property
    def adds_noise(self) -> bool:
        """Whether a step adds noise, so that it is not linear in prediction and latents."""
        return self.class_name == _WITH_NOISE

    def scale_model_input(self, latents: Tensor, step_index: int) -> Tensor:
        """Return the latents as the network wants them at `step_index`, same shape and dtype."""
        if self._is_flow_euler:
            return latents
        self._seek(step_index)
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step_index])
        return scaled

    def step(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """Return x at `step_index + 1`, float32, by diffusers' own `step`.

        DDIM without added noise (eta 0): arXiv 2010.02502, eq. 12. DPM-Solver++ 2M: arXiv 2211.01095, algorithm 2.
        UniPC of order 2, B_2(h): arXiv 2302.04867, algorithms 1 and 2; its corrector changes x at `step_index` with the
        prediction made there, so what was streamed as x is the uncorrected one. Euler: arXiv 2206.00364, algorithm 2
        without churn; of a flow x + (sigma' - sigma) v. CogVideoX's DPM: arXiv 2211.01095, section 3.3 (SDE, 2M).

        Args:
            noise_pred: `[B, C, H, W]`, of `prediction_type`.
            step_index: The step that is run, 0-based.
            latents: x at `step_index`, `[B, C, H, W]`, scheduler scaling.

        Raises:
            ValueError: If there is a history, and it is that of another step.
        """
        if self._history and step_index != self._next_step:
            raise ValueError(f"the history is for step {self._next_step}, not {step_index}: load another state first")
        self._seek(step_index)
        if self.is_multistep and not self.adds_noise:
            self._restore_history()
        previous = self._stepped(noise_pred.float(), step_index, latents.float())
        self._next_step = step_index + 1
        if self.is_multistep:
            self._history = self._newest_history() if self._next_step < self.schedule.num_steps else {}
        return previous

    def _stepped(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        timestep, scheduler = self._timesteps[step_index], self._scheduler
        previous: Tensor
        if not self.adds_noise:
            previous = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
            return previous
        before = self._history.get("denoised_1")
        previous, self._denoised = scheduler.step(
            noise_pred,
            before,
            timestep,
            None if before is None else self._timesteps[step_index - 1],
            latents,
            generator=step_generators(self.config["noise_seed"], step_index, len(latents)),
            return_dict=False,
        )
        return previous

    def state(self) -> dict[str, Tensor]:
        """Return the history that must travel with the latents, each `[B, C, H, W]`, float32; empty for none."""
        return dict(self._history)

    def load_state(self, state: Mapping[str, Tensor], *, step_index: int) -> None:
        """Continue at `step_index` with the history that `state` returned elsewhere; empty restarts at order 1.

        Raises:
            ValueError: If it is not a history that this scheduler can have there.
        """
        possible = _HISTORIES[self.class_name][: step_index + 1]
        if state.keys() not in possible:
            names = ", ".join(sorted(state))[:200] or "nothing"
            if not self.is_multistep:
                raise ValueError(f"{self.class_name} keeps no history, but the state has {names}")
            known = " or ".join(", ".join(sorted(each)) or "nothing" for each in possible)
            raise ValueError(f"the history of {self.class_name} at step {step_index} is {known}, not {names}")
        self._history = {name: tensor.to(self.device, torch.float32) for name, tensor in state.items()}
        self._next_step = step_index

    def _seek(self, step_index: int) -> None:
        # diffusers counts steps by itself, from the first timestep that it is given; a correction asks for any of them.
        self._scheduler._step_index = step_index

    def _restore_history(self) -> None:
        scheduler, history = self._scheduler, self._history
        num_steps = _HISTORIES[self.class_name].index(frozenset(history))
        scheduler.model_outputs = [history.get("denoised_2"), history.get("denoised_1")]
        scheduler.lower_order_nums = num_steps
        if self.class_name == "UniPCMultistepScheduler":
            scheduler.last_sample = history.get("last_latents")
            # The order of the last step, which the corrector repeats: only the very last is lower, and has no next one.
            scheduler.this_order = num_steps

    def _newest_history(self) -> dict[str, Tensor]:
        if self.adds_noise:
            return {"denoised_1": self._denoised}
        before, last = self._scheduler.model_outputs
        if self.class_name == "DPMSolverMultistepScheduler":
            return {"denoised_1": last}
        history = {"denoised_1": last, "last_latents": self._scheduler.last_sample}
        return history if before is None else history | {"denoised_2": before}
