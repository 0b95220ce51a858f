"""Multistep solvers with their steps evenly spread in lambda = log(alpha / sigma), as DPM-Solver's authors recommend.

The services run schedulers whose steps lie at timesteps of the training schedule (`timestep_spacing`). At few steps
those lie badly for a solver that works in lambda, so a fair comparison needs this one too.
"""

from __future__ import annotations

import numpy as np
import torch

from diffusion.schedulers import Stepper
from orchestrator.in_process import InProcessPair

LOG_SNR = "log-snr"


class LogSnrStepper(Stepper):
    """A multistep solver's `Stepper` from the training schedule's noisiest level to its lowest, evenly in lambda.

    Arguments as `Stepper`'s; DPM-Solver++ and UniPC only (arXiv 2206.00927, section 3.3: uniform logSNR steps).
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        abar = self._scheduler.alphas_cumprod.double().numpy()
        log_ratios = 0.5 * np.log((1 - abar) / abar)  # log(sigma / alpha) = -lambda, rising with the timestep
        placed = np.linspace(log_ratios[-1], log_ratios[0], len(self._timesteps))
        self._timesteps = np.interp(placed, log_ratios, np.arange(len(abar))).tolist()
        self._scheduler.timesteps = torch.tensor(self._timesteps)
        self._scheduler.sigmas = torch.tensor([*np.exp(placed), 0.0], dtype=torch.float32)
        self.schedule = self._make_schedule()


class LogSnrPair(InProcessPair):
    """A pair whose scheduler is a multistep solver with its steps placed so."""

    def stepper(self, num_inference_steps: int) -> Stepper:
        """Return a fresh scheduler."""
        return LogSnrStepper(*self._scheduler, num_inference_steps, self.cloud.device)
