"""What a plan would have done, from predictions that were recorded once: the same rules, on coordinates.

Along one recorded trajectory everything that a plan computes - predictors, residuals, scheduler steps - is linear in
the predictions of the two models and the noise. So the recorded tensors serve as a basis, a tensor is a vector of a few
dozen coordinates, and the real predictors and schedulers run on those. Lengths come from the basis' Gram matrix.

What is not linear is the network: away from the recorded latents it says something else. To first order that is a
factor of the distance, the *response*, measured once at each step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.predictors import Predictor, make_predictor
from diffusion.residual import Residual
from diffusion.schedulers import Stepper


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Both models along the trajectory that the cloud alone makes; tensors `[P, C, H, W]`, float32.

    Attributes:
        latents: x at each step and the final latents, one more than there are steps.
        cloud: The large model's prediction at each step, as the scheduler consumes it.
        edge: The small model's, at the same latents.
    """

    latents: tuple[Tensor, ...]
    cloud: tuple[Tensor, ...]
    edge: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Responses:
    """How a model's prediction changes with the latents: d prediction / d latents, one number a step.

    Attributes:
        cloud: Of the large model.
        edge: Of the small one.
    """

    cloud: tuple[float, ...]
    edge: tuple[float, ...]


def response(moved: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the number that explains best how predictions moved with the latents (least squares); 0 for no movement.

    Args:
        moved: (latents there - latents here, prediction there - prediction here) for several places.
    """
    along = sum(float((change * distance).sum()) for distance, change in moved)
    length = sum(float(distance.square().sum()) for distance, _ in moved)
    return along / length if length > 0.0 else 0.0


class Replay:
    """Runs plans on a recording.

    Args:
        recording: What the models said.
        responses: How that changes with the latents.
        stepper: Of the recorded trajectory; used by nobody else. Its step must be linear (no clipping).

    Raises:
        ValueError: If the scheduler adds noise.
    """

    def __init__(self, recording: Recording, responses: Responses, stepper: Stepper) -> None:
        if stepper.adds_noise:
            raise ValueError("the scheduler adds noise, so plans cannot be replayed on a recording: choose another one")
        self._stepper = stepper
        self._num_steps = stepper.schedule.num_steps
        self._responses = responses
        basis = torch.stack([recording.latents[0], *recording.cloud, *recording.edge], dim=1).flatten(2).double().cpu()
        self._gram = basis @ basis.transpose(1, 2)
        self._mean_gram = self._gram.mean(dim=0)
        self._length = recording.latents[-1].double().cpu().flatten(1).norm(dim=1)
        axes = torch.eye(basis.shape[1])
        self._cloud, self._edge = axes[1 : self._num_steps + 1], axes[self._num_steps + 1 :]
        # A scheduler without history is linear step by step, and asking it each time would take most of the time.
        one, zero = torch.ones(1), torch.zeros(1)
        self._factors = (
            None
            if stepper.is_multistep
            else [
                (float(stepper.step(zero, i, one)), float(stepper.step(one, i, zero))) for i in range(self._num_steps)
            ]
        )
        self._reference = [axes[0]]
        for i in range(self._num_steps):
            self._reference.append(self._step(self._cloud[i], i, self._reference[i]))

    @torch.inference_mode()
    def run(
        self,
        *,
        real_steps: Collection[int],
        handoff_step: int,
        correction_steps: Collection[int],
        predictor: str,
        residual: str | None,
        fade: Sequence[float] = (),
    ) -> tuple[list[float], tuple[float, ...]]:
        """Run a plan.

        Args:
            real_steps: Where the cloud evaluates before the handoff.
            handoff_step: First step that the edge leads.
            correction_steps: Where the cloud evaluates from there on.
            predictor: What the cloud extrapolates with.
            residual: What the edge extrapolates cloud minus edge with; None: its own prediction alone.
            fade: Factor of that at each step; empty: at each step the one that fits best.

        Returns:
            Relative L2 error of the final latents for each prompt, and the fade used at each step; empty without a
            residual.
        """
        rule, latents = self._predictor(predictor), self._reference[0]
        learned = None if residual is None else Residual(self._predictor(residual))
        used: list[float] = []
        for i in range(self._num_steps):
            leads = i >= handoff_step
            called = i in correction_steps if leads else i in real_steps
            distance = latents - self._reference[i]
            cloud = torch.add(self._cloud[i], distance, alpha=self._responses.cloud[i])
            edge = torch.add(self._edge[i], distance, alpha=self._responses.edge[i])
            extrapolated = None if learned is None or called else learned.predict(i, latents)
            if learned is not None:
                used.append(self._factor(i, fade, cloud - edge, extrapolated))
            if called:
                prediction = cloud
                if learned is not None:
                    learned.observe(i, cloud, edge, latents)
                if not leads:
                    rule.observe(i, cloud, latents)
            elif not leads:
                prediction = rule.predict(i, latents)
            else:
                prediction = edge if extrapolated is None else torch.add(edge, extrapolated, alpha=used[i])
            latents = self._step(prediction, i, latents)
        return self._relative(latents - self._reference[-1]), tuple(used)

    def _predictor(self, name: str) -> Predictor:
        return make_predictor(name, self._stepper.schedule, prediction_type=self._stepper.prediction_type)

    def _step(self, prediction: Tensor, step_index: int, latents: Tensor) -> Tensor:
        if self._factors is None:
            if step_index == 0:
                self._stepper.load_state({}, step_index=0)
            whole = (1, 1, 1, -1)  # the solvers want axes of a batch
            return self._stepper.step(prediction.view(whole), step_index, latents.view(whole)).flatten()
        of_latents, of_prediction = self._factors[step_index]
        return torch.add(of_latents * latents, prediction, alpha=of_prediction)

    def _factor(self, step_index: int, fade: Sequence[float], true: Tensor, guessed: Tensor | None) -> float:
        """Return the given fade, or what brings a guess nearest to the truth over all prompts, clamped to 0..1."""
        if fade:
            return fade[step_index]
        if guessed is None:
            return 1.0
        weighed = self._mean_gram @ guessed.double()
        length = float(guessed.double() @ weighed)
        return min(max(float(true.double() @ weighed) / length, 0.0), 1.0) if length > 0.0 else 0.0

    def _relative(self, difference: Tensor) -> list[float]:
        weights = difference.double()
        squares = torch.einsum("i,pij,j->p", weights, self._gram, weights).clamp_min(0.0)
        return [float(each) for each in squares.sqrt() / self._length]
