from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.prediction_types import convert_prediction
from diffusion.predictors import Predictor
from diffusion.schedule import Schedule
from diffusion.schedulers import Stepper

# Two rules of different order can agree by construction up to the second real prediction.
_EMBEDDED_OBSERVATIONS = 3


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did; the tensors are never written to again.

    Attributes:
        step_index: The step that was run, 0-based.
        evaluated: Whether a network was asked; False for an extrapolated step.
        latents_before: x at `step_index`, `[B, C, H, W]`, loop dtype, scheduler scaling.
        latents: x at `step_index + 1`, likewise.
        noise_pred: What the scheduler consumed, `[B, C, H, W]`, float32.
        extrapolation_error: |real - predicted| / |real| (L2 over the batch) at a real step where the
            predictor could predict; None elsewhere.
    """

    step_index: int
    evaluated: bool
    latents_before: Tensor
    latents: Tensor
    noise_pred: Tensor
    extrapolation_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrajectoryState:
    """A trajectory between two steps: `latents` is x at `step_index`, the next step to run."""

    step_index: int
    latents: Tensor
    scheduler_state: Mapping[str, Tensor] = field(default_factory=dict)


class Trajectory:
    """The way of one batch from noise to clean latents, one step at a time.

    It does not know where a prediction comes from: cloud model, edge model or extrapolation. The
    loop's dtype is the model's; scheduler and predictor compute in float32, and the latents are rounded to
    the loop's dtype after each step, so that what crosses the network is exactly what the loop goes on with.

    Args:
        latents: x at `start_step`, `[B, C, H, W]`, scheduler scaling (noise times
            `schedule.init_noise_sigma` at step 0); H and W in latent pixels.
        stepper: The scheduler of this trajectory, used by no other.
        start_step: First step to run, 0-based.
        predictor: A fresh predictor; None where nothing is extrapolated. A resumed trajectory starts with
            an empty one and warms it up with real evaluations.
        companion: A fresh predictor of another order, for `embedded_error`; None where nobody asks for it.
        dtype: Loop dtype.

    Raises:
        ValueError: Unless `0 <= start_step <= stepper.schedule.num_steps`.
    """

    def __init__(
        self,
        latents: Tensor,
        stepper: Stepper,
        *,
        start_step: int = 0,
        predictor: Predictor | None = None,
        companion: Predictor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 0 <= start_step <= stepper.schedule.num_steps:
            raise ValueError(f"start_step must lie in 0..{stepper.schedule.num_steps}, not {start_step}")
        self.step_index = start_step
        self.latents = latents.to(device=stepper.device, dtype=dtype)
        self._stepper = stepper
        self._predictor = predictor
        self._companion = companion
        self._num_observations = 0

    @property
    def schedule(self) -> Schedule:
        """The schedule of the whole trajectory."""
        return self._stepper.schedule

    @property
    def done(self) -> bool:
        """Whether every step has been run."""
        return self.step_index == self.schedule.num_steps

    @property
    def timestep(self) -> float:
        """What the network is fed at the next step."""
        return self.schedule.timesteps[self.step_index]

    @property
    def can_extrapolate(self) -> bool:
        """Whether the predictor has seen enough real predictions."""
        return self._predictor is not None and self._num_observations >= self._predictor.min_observations

    def model_input(self) -> Tensor:
        """Return the latents of the next step as the network wants them, `[B, C, H, W]`, loop dtype."""
        return self._stepper.scale_model_input(self.latents, self.step_index)

    @torch.inference_mode()
    def advance(self, noise_pred: Tensor, *, prediction_type: str | None = None) -> StepResult:
        """Run the next step on a real prediction.

        Args:
            noise_pred: Guided prediction at `model_input()` and `timestep`, `[B, C, H, W]`.
            prediction_type: Type of `noise_pred`; converted when the scheduler consumes another one.
                None: the scheduler's own.

        Raises:
            ValueError: If the step cannot convert the prediction type (see `convert_prediction`).
        """
        real = noise_pred.float()
        if prediction_type is not None:
            real = convert_prediction(
                real,
                self.latents,
                source=prediction_type,
                target=self._stepper.prediction_type,
                alpha=self.schedule.alphas[self.step_index],
                sigma=self.schedule.sigmas[self.step_index],
            )
        error = None
        if self._predictor is not None:
            if self.can_extrapolate:
                error = _relative_error(real, self._predictor.predict(self.step_index, self.latents))
            self._predictor.observe(self.step_index, real, self.latents)
            self._num_observations += 1
        if self._companion is not None:
            self._companion.observe(self.step_index, real, self.latents)
        return self._step(real, evaluated=True, error=error)

    @torch.inference_mode()
    def extrapolate(self) -> StepResult:
        """Run the next step on the predictor's prediction.

        Raises:
            ValueError: Without a predictor, or before it has seen enough real predictions.
        """
        if self._predictor is None:
            raise ValueError(f"step {self.step_index} cannot be extrapolated without a predictor")
        predicted = self._predictor.predict(self.step_index, self.latents)
        return self._step(predicted, evaluated=False, error=None)

    @torch.inference_mode()
    def embedded_error(self) -> float | None:
        """Estimate the error of extrapolating the next step: mean |P - P_companion|, predictors of different order.

        In the units of the prediction; times the step's sensitivity (`diffusion.sensitivity`) it is what the latents
        would be off by. Computed only when asked for: two predictions and a mean, no network. On a GPU it waits for
        the device.

        Returns:
            None without a predictor and a companion, and before the third real prediction: until then two rules can
            agree for want of history.
        """
        if self._predictor is None or self._companion is None or self._num_observations < _EMBEDDED_OBSERVATIONS:
            return None
        predictions = [each.predict(self.step_index, self.latents) for each in (self._predictor, self._companion)]
        return float((predictions[0] - predictions[1]).abs().mean())

    def state(self) -> TrajectoryState:
        """Return what another trajectory needs to go on from here, save the predictor's history."""
        return TrajectoryState(step_index=self.step_index, latents=self.latents, scheduler_state=self._stepper.state())

    def _step(self, noise_pred: Tensor, *, evaluated: bool, error: float | None) -> StepResult:
        before = self.latents
        self.latents = self._stepper.step(noise_pred, self.step_index, before).to(before.dtype)
        self.step_index += 1
        return StepResult(
            step_index=self.step_index - 1,
            evaluated=evaluated,
            latents_before=before,
            latents=self.latents,
            noise_pred=noise_pred,
            extrapolation_error=error,
        )


def denoise(
    trajectory: Trajectory,
    evaluate: Callable[[Trajectory], Tensor],
    needs_evaluation: Callable[[int], bool],
    *,
    stop_step: int,
    prediction_type: str | None = None,
) -> Iterator[StepResult]:
    """Run a trajectory up to, but not including, `stop_step`.

    Yields after every step, so the caller can stream, stop or hand off between steps; nothing
    past the last item taken is computed.

    Args:
        trajectory: Where to go on from.
        evaluate: Returns the guided prediction at the trajectory's next step.
        needs_evaluation: Whether a step (its index) needs a real evaluation; else it is extrapolated.
        stop_step: Handoff step; `schedule.num_steps` runs to clean latents.
        prediction_type: Type of what `evaluate` returns; None: the scheduler's own.

    Raises:
        ValueError: Unless `trajectory.step_index <= stop_step <= num_steps`.
    """
    if not trajectory.step_index <= stop_step <= trajectory.schedule.num_steps:
        raise ValueError(
            f"stop_step must lie in {trajectory.step_index}..{trajectory.schedule.num_steps}, not {stop_step}"
        )
    while trajectory.step_index < stop_step:
        if needs_evaluation(trajectory.step_index):
            yield trajectory.advance(evaluate(trajectory), prediction_type=prediction_type)
        else:
            yield trajectory.extrapolate()


def _relative_error(real: Tensor, predicted: Tensor) -> float:
    norm = torch.linalg.vector_norm(real).clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.linalg.vector_norm(real - predicted) / norm)
