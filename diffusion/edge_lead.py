"""The edge model beside the cloud and after it: it shadows, then leads, and is corrected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.prediction_types import convert_prediction
from diffusion.predictors import Predictor, make_predictor
from diffusion.residual import Residual
from diffusion.schedulers import Stepper
from diffusion.trajectory import StepResult, Trajectory

# What the disagreement after the handoff compares with: the predictor that is exact on the most.
EXTRAPOLATION = "quadratic"

WantsCall = Callable[[int, Callable[[], float]], bool]
"""Whether the cloud is to be asked at a step: (its index, a function that measures the disagreement there)."""


class EdgeLead:
    """The small model's half of one generation.

    While the cloud leads, `shadow` evaluates the small model where the large one was evaluated: that measures how far
    they disagree on this prompt, and what the small one gets wrong. From `take_over` on the small model leads:

        lead.take_over(trajectory)
        while lead.run_to_call(wants_call, on_step):
            ...                                     # send the latents of trajectory.step_index to the cloud
            lead.think()                            # the small model's own answer, while the cloud's travels
            on_step(lead.advance(cloud_prediction))  # None if none came

    Predictions are `[B, C, H, W]`, float32, guided, of the type that the scheduler consumes, save where said otherwise.

    Args:
        evaluate: Asks the small model: (model input `[B, C, H, W]`, timestep) -> guided prediction of its own type.
        stepper: The scheduler of the trajectory to come.
        prediction_type: What `evaluate` answers.
        residual: Adds what the small model is known to get wrong; None: nothing.
        extrapolation: Fresh predictor of the cloud's prediction, for the disagreement after the handoff; None where
            nobody asks for it.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor, float], Tensor],
        stepper: Stepper,
        *,
        prediction_type: str,
        residual: Residual | None = None,
        extrapolation: Predictor | None = None,
    ) -> None:
        self.stepper = stepper
        self._evaluate = evaluate
        self._prediction_type = prediction_type
        self._residual = residual
        self._extrapolation = extrapolation
        self._num_observations = 0
        self._trajectory: Trajectory
        self._own: Tensor | None = None

    @torch.inference_mode()
    def shadow(self, step_index: int, cloud: Tensor, latents: Tensor) -> list[float]:
        """Evaluate the small model where the large one was, and learn from the difference.

        Args:
            step_index: A real step of the cloud; rises from call to call.
            cloud: The large model's prediction there.
            latents: x at `step_index`, `[B, C, H, W]`, scheduler scaling.

        Returns:
            q of each picture: mean |edge - cloud| / mean |cloud|. Where the small model has no finite answer neither
            is q, and nothing is learned from it.
        """
        cloud = cloud.float()
        self._own = self._ask(step_index, latents)
        disagreement: list[float] = _ratio(self._own - cloud, cloud).tolist()
        self._learn(step_index, cloud, latents)
        self._own = None
        return disagreement

    def take_over(self, trajectory: Trajectory) -> None:
        """Lead from the trajectory's next step on, which comes after every step that was shadowed."""
        self._trajectory = trajectory

    @torch.inference_mode()
    def run_to_call(self, wants_call: WantsCall, on_step: Callable[[StepResult], object]) -> bool:
        """Run steps of the small model until the cloud is to be asked.

        Args:
            wants_call: Asked before each step.
            on_step: Told of each step.

        Returns:
            Whether the cloud is to be asked at the trajectory's next step; False at its end.

        Raises:
            ArithmeticError: The small model has no finite answer.
        """
        while not self._trajectory.done:
            if wants_call(self._trajectory.step_index, self._disagreement):
                return True
            on_step(self.advance(None))
        return False

    @torch.inference_mode()
    def think(self) -> None:
        """Evaluate the small model at the next step, unless that was done: `advance` may want it."""
        if self._own is None:
            self._own = self._ask(self._trajectory.step_index, self._trajectory.latents)

    @torch.inference_mode()
    def advance(self, cloud: Tensor | None) -> StepResult:
        """Run the next step on the cloud's prediction, or on the small model's own where there is none.

        Raises:
            ArithmeticError: The small model's answer is needed, and there is no finite one.
        """
        at = self._trajectory
        if cloud is not None:
            cloud = cloud.float()
            if self._residual is not None:
                self.think()
            self._learn(at.step_index, cloud, at.latents)
            prediction = cloud
        else:
            prediction = self._corrected()
            if not torch.isfinite(prediction).all():
                raise ArithmeticError(f"the edge model has no finite answer at step {at.step_index}")
        self._own = None
        return at.advance(prediction)

    def _corrected(self) -> Tensor:
        """Return the small model's own prediction at the next step, with the residual."""
        self.think()
        assert self._own is not None
        if self._residual is None:
            return self._own
        return self._residual.correct(self._trajectory.step_index, self._own, self._trajectory.latents)

    def _disagreement(self) -> float:
        """Return mean |edge - extrapolation| / mean |extrapolation| at the next step, of the picture with the largest.

        Infinite before anything can be extrapolated, NaN where one picture's is.
        """
        if self._extrapolation is None or self._num_observations < self._extrapolation.min_observations:
            return float("inf")
        at = self._trajectory
        extrapolated = self._extrapolation.predict(at.step_index, at.latents)
        return float(_ratio(self._corrected() - extrapolated, extrapolated).max())

    def _learn(self, step_index: int, cloud: Tensor, latents: Tensor) -> None:
        """Take in what both models say at a step; a small model's answer that is not finite teaches no residual."""
        self._num_observations += 1
        if self._extrapolation is not None:
            self._extrapolation.observe(step_index, cloud, latents)
        if self._residual is not None and self._own is not None and torch.isfinite(self._own).all():
            self._residual.observe(step_index, cloud, self._own, latents)

    def _ask(self, step_index: int, latents: Tensor) -> Tensor:
        """Return the small model's prediction as the scheduler consumes it; NaN where it says nothing about that."""
        schedule, consumed = self.stepper.schedule, self.stepper.prediction_type
        alpha = schedule.alphas[step_index]
        if self._prediction_type == "epsilon" != consumed and alpha == 0.0:
            # At zero terminal SNR every x0 has this epsilon. The cloud, which runs that step, predicts another type.
            return torch.full_like(latents, math.nan, dtype=torch.float32)
        answer = self._evaluate(self.stepper.scale_model_input(latents, step_index), schedule.timesteps[step_index])
        return convert_prediction(
            answer.float(),
            latents,
            source=self._prediction_type,
            target=consumed,
            alpha=alpha,
            sigma=schedule.sigmas[step_index],
        )


def make_edge_lead(
    evaluate: Callable[[Tensor, float], Tensor],
    stepper: Stepper,
    *,
    prediction_type: str,
    residual: str | None = None,
    fade: Sequence[float] = (),
    reach: int | None = None,
    compares: bool = False,
) -> EdgeLead:
    """Return a fresh `EdgeLead`.

    Args:
        evaluate: See `EdgeLead`.
        stepper: See `EdgeLead`.
        prediction_type: See `EdgeLead`.
        residual: Name of the predictor that extrapolates cloud minus edge; None: the small model alone.
        fade: Factor of that at each step; empty: 1 everywhere.
        reach: Steps after the last observation for which that is trusted (`Residual`); None: for ever.
        compares: Whether anybody will ask for the disagreement after the handoff.

    Raises:
        ValueError: An unknown predictor, or a fade that is not one number a step.
    """
    if len(fade) not in (0, stepper.schedule.num_steps):
        raise ValueError(f"fade must have one number a step, {stepper.schedule.num_steps}, not {len(fade)}")

    def predictor(name: str) -> Predictor:
        return make_predictor(name, stepper.schedule, prediction_type=stepper.prediction_type, smoothing=0.0)

    return EdgeLead(
        evaluate,
        stepper,
        prediction_type=prediction_type,
        residual=None if residual is None else Residual(predictor(residual), fade or None, reach=reach),
        extrapolation=predictor(EXTRAPOLATION) if compares else None,
    )


def _ratio(difference: Tensor, of: Tensor) -> Tensor:
    """Return mean |difference| / mean |of| for each picture, `[B]`."""
    scale = of.abs().flatten(1).mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return difference.abs().flatten(1).mean(dim=1) / scale
