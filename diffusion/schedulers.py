from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import torch
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

# What a solver's next step needs of its last ones, by how many of them it has made since its (re)start: x0 as
# predicted at the last step and at the one before, and the latents that the last step started from, corrected.
_HISTORIES: dict[str, tuple[frozenset[str], ...]] = {
    "DDIMScheduler": (frozenset(),),
    "EulerDiscreteScheduler": (frozenset(),),
    "DPMSolverMultistepScheduler": (frozenset(), frozenset({"denoised_1"})),
    "UniPCMultistepScheduler": (
        frozenset(),
        frozenset({"denoised_1", "last_latents"}),
        frozenset({"denoised_1", "denoised_2", "last_latents"}),
    ),
}
# Above it the square of a noise level, which the solvers take, leaves float32.
_MAX_NOISE_TO_SIGNAL = 1e9
# What every known model was trained with.
_MAX_KEPT_TIMESTEPS = 1000


class Stepper:
    """One scheduler of diffusers, for one trajectory.

    No scheduler adds noise: a step is a function of the prediction, the latents and, for the multistep solvers, the
    history, which `state` and `load_state` carry to another Stepper of the same schedule. The solvers' own counters of
    lower orders follow from what the history holds.

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
        self._scheduler = _placed(class_name, self.config, num_inference_steps)
        self._timesteps: list[float] = self._scheduler.timesteps.tolist()
        falling = all(later < earlier for earlier, later in pairwise(self._timesteps))
        if len(self._timesteps) != num_inference_steps or not falling or not self._within(trained):
            raise ValueError(
                f"the model's scheduler cannot place {num_inference_steps} steps with timestep_spacing "
                f"{self.config['timestep_spacing']} and steps_offset {self.config['steps_offset']}"
            )
        self.schedule = self._make_schedule()
        self._history: dict[str, Tensor] = {}
        self._next_step = 0

    def _within(self, trained: int) -> bool:
        return self._timesteps[0] < trained and self._timesteps[-1] >= 0

    def _make_schedule(self) -> Schedule:
        alphas, sigmas = _ddim_levels(self._scheduler) if self.class_name == "DDIMScheduler" else self._solver_levels()
        schedule = Schedule(
            timesteps=tuple(float(timestep) for timestep in self._timesteps),
            sigmas=(*sigmas.tolist(), 0.0),
            alphas=tuple(alphas.tolist()),
            init_noise_sigma=float(self._scheduler.init_noise_sigma),
        )
        # epsilon says nothing about x0 where there is no signal: x0 = (x - sigma * epsilon) / 0.
        if self.prediction_type == "epsilon" and schedule.alphas[0] == 0.0:
            raise ValueError("epsilon prediction cannot start at zero terminal SNR (rescale_betas_zero_snr)")
        return schedule

    def _solver_levels(self) -> tuple[Tensor, Tensor]:
        """Return signal and noise level of each step in the solver's scaling; diffusers keeps noise over signal."""
        ratios = self._scheduler.sigmas.double()
        if not bool((ratios[0] <= _MAX_NOISE_TO_SIGNAL) & (ratios.diff() < 0).all()):  # NaN is neither
            raise ValueError("scheduler config: the betas give noise levels that do not fall from step to step")
        # Euler's latents are x0 + ratio * noise (arXiv 2206.00364, table 1, "VE"); the others' preserve variance.
        alphas = torch.ones_like(ratios) if self.class_name == "EulerDiscreteScheduler" else (1 + ratios**2).rsqrt()
        return alphas[:-1], (alphas * ratios)[:-1]

    @property
    def prediction_type(self) -> str:
        """What `step` takes: epsilon, v_prediction or sample."""
        return str(self.config["prediction_type"])

    @property
    def is_multistep(self) -> bool:
        """Whether a step uses earlier ones; without their history such a solver restarts at order 1."""
        return len(_HISTORIES[self.class_name]) > 1

    def scale_model_input(self, latents: Tensor, step_index: int) -> Tensor:
        """Return the latents as the network wants them at `step_index`, same shape and dtype."""
        self._seek(step_index)
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step_index])
        return scaled

    def step(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """Return x at `step_index + 1`, float32, by diffusers' own `step`.

        DDIM without added noise (eta 0): arXiv 2010.02502, eq. 12. DPM-Solver++ 2M: arXiv 2211.01095, algorithm 2.
        UniPC of order 2, B_2(h): arXiv 2302.04867, algorithms 1 and 2; its corrector changes x at `step_index` with the
        prediction made there, so what was streamed as x is the uncorrected one. Euler: arXiv 2206.00364, algorithm 2
        without churn.

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
        if self.is_multistep:
            self._restore_history()
        previous: Tensor = self._scheduler.step(
            noise_pred.float(), self._timesteps[step_index], latents.float(), return_dict=False
        )[0]
        self._next_step = step_index + 1
        if self.is_multistep:
            self._history = self._newest_history() if self._next_step < self.schedule.num_steps else {}
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
        before, last = self._scheduler.model_outputs
        if self.class_name == "DPMSolverMultistepScheduler":
            return {"denoised_1": last}
        history = {"denoised_1": last, "last_latents": self._scheduler.last_sample}
        return history if before is None else history | {"denoised_2": before}


def _placed(class_name: str, config: SchedulerConfig, num_inference_steps: int) -> Any:
    """Return a scheduler of diffusers with its timesteps set, nobody else's.

    diffusers takes milliseconds to make one, on a service's event loop, and most sessions ask for the same: those are
    copied. None that is longer than models are is kept: strangers choose the configurations, and memory is not theirs.
    """
    if config["num_train_timesteps"] > _MAX_KEPT_TIMESTEPS:
        return _place_steps(class_name, config, num_inference_steps)
    return copy.deepcopy(_kept_steps(class_name, json.dumps(config), num_inference_steps))


@lru_cache(maxsize=64)
def _kept_steps(class_name: str, config: str, num_inference_steps: int) -> Any:
    return _place_steps(class_name, json.loads(config), num_inference_steps)


def _place_steps(class_name: str, config: SchedulerConfig, num_inference_steps: int) -> Any:
    scheduler = getattr(diffusers, class_name).from_config(config)
    # Logarithms are taken of noise levels that the other end's betas may make 0; `_solver_levels` refuses those.
    with np.errstate(all="ignore"):
        scheduler.set_timesteps(num_inference_steps)
    # With "trailing" spacing some step counts get one more by rounding, -1, which is no timestep.
    scheduler.timesteps = scheduler.timesteps[:num_inference_steps]
    if class_name != "DDIMScheduler":
        scheduler.sigmas = torch.cat([scheduler.sigmas[:num_inference_steps], scheduler.sigmas[-1:]])
    return scheduler


def _ddim_levels(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Return signal and noise level of each step."""
    abar = scheduler.alphas_cumprod[scheduler.timesteps].double()
    if not bool(((abar >= 0) & (abar <= 1)).all()):  # NaN is neither
        raise ValueError("scheduler config: the betas give signal levels that are not between 0 and 1")
    return abar.sqrt(), (1 - abar).sqrt()
