"""The search's look at real models: what both say along the cloud's trajectory, and what candidates really give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from diffusion.model import Model
from diffusion.prediction_types import convert_prediction
from diffusion.replay import Recording, Replay, Responses, response
from diffusion.sensitivity import ddim_sensitivities
from diffusion.trajectory import StepResult
from orchestrator.in_process import InProcessPair
from orchestrator.search.candidate import Candidate
from wire.edge_plan import EdgePlan
from wire.messages import Plan


def plans_of(candidate: Candidate, num_steps: int) -> tuple[Plan, EdgePlan]:
    """Return what a candidate tells the cloud and the edge."""
    plan = Plan(
        num_inference_steps=num_steps,
        handoff_step=candidate.handoff_step,
        refresh="listed",
        real_steps=candidate.real_steps,
        predictor=candidate.predictor,
        smoothing=0.0,
    )
    edge_plan = EdgePlan(
        shadow=candidate.residual is not None,
        residual=candidate.residual,
        fade=candidate.fade,
        corrections="planned",
        correction_steps=candidate.correction_steps,
    )
    return plan, edge_plan


class ReplayScreen:
    """A `Screen` over a recording."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def error(self, candidate: Candidate) -> float:
        """Return the mean error over the prompts; with the candidate's fade, or the best one where it has none."""
        errors = self._run(candidate)[0]
        return sum(errors) / len(errors)

    def fade(self, candidate: Candidate) -> tuple[float, ...]:
        """Return the best fade of the candidate's residual."""
        return self._run(candidate)[1]

    def _run(self, candidate: Candidate) -> tuple[list[float], tuple[float, ...]]:
        return self._replay.run(
            real_steps=candidate.real_steps,
            handoff_step=candidate.handoff_step,
            correction_steps=candidate.correction_steps,
            predictor=candidate.predictor,
            residual=candidate.residual,
            fade=candidate.fade,
        )


class Measurement:
    """One pair on all search prompts, in one batch; nothing is measured before `record`.

    Args:
        pair: Models, prompts, seeds, guidance, scheduler.
        num_steps: Of every plan.
        on_step: Told of each step that is run.
    """

    def __init__(self, pair: InProcessPair, num_steps: int, on_step: Callable[[], object] = lambda: None) -> None:
        self._pair = pair
        self._num_steps = num_steps
        self._stepper = pair.stepper(num_steps)
        self._on_step = on_step
        self._recording: Recording

    @property
    def sensitivity(self) -> tuple[float, ...]:
        """c_i of each step."""
        return ddim_sensitivities(self._stepper.schedule, self._stepper.prediction_type)

    def coordinates(self) -> tuple[tuple[float, ...], ...]:
        """Return ways to lay the steps out: by index, and by lambda where it is finite."""
        schedule = self._stepper.schedule
        ways = [tuple(float(i) for i in range(self._num_steps))]
        if all(schedule.alphas):
            pairs = zip(schedule.alphas, schedule.sigmas[:-1], strict=True)
            ways.append(tuple(math.log(alpha / sigma) for alpha, sigma in pairs))
        return tuple(ways)

    def record(self) -> list[list[float]]:
        """Run both models along the trajectory that the cloud alone makes.

        Returns:
            q of each prompt at each step (`Agreement.disagreement` is their mean).
        """
        results = self._results(Plan(num_inference_steps=self._num_steps, handoff_step=self._num_steps), None)
        latents = [each.latents_before.float() for each in results]
        self._recording = Recording(
            latents=(*latents, results[-1].latents.float()),
            cloud=tuple(each.noise_pred for each in results),
            edge=tuple(self._ask(self._pair.edge, i, latents[i]) for i in range(self._num_steps)),
        )
        by_step = [
            _per_prompt((edge - cloud).abs(), cloud.abs())
            for edge, cloud in zip(self._recording.edge, self._recording.cloud, strict=True)
        ]
        return [list(curve) for curve in zip(*by_step, strict=True)]

    def run(self, candidate: Candidate) -> list[float]:
        """Run a candidate closed loop.

        Returns:
            Relative L2 of the final latents to all-cloud, one a prompt; infinite where a model's answer is not finite.
        """
        return self.run_plan(*plans_of(candidate, self._num_steps))

    def run_plan(self, plan: Plan, edge_plan: EdgePlan | None = None) -> list[float]:
        """Run any plan; returns what `run` does."""
        try:
            results = self._results(plan, edge_plan)
        except ArithmeticError:
            return [math.inf] * len(self._recording.latents[0])
        final = self._recording.latents[-1]
        return _relative(results[-1].latents.float() - final, final)

    def responses(self, probes: Sequence[Candidate]) -> list[float]:
        """Measure how both models' predictions change with the latents, at the latents that candidates come by.

        Returns:
            The cloud's response at each step, then the edge's.
        """
        ways = [[each.latents_before.float() for each in self._results(*self._plans(probe))] for probe in probes]
        found = []
        for model, there in ((self._pair.cloud, self._recording.cloud), (self._pair.edge, self._recording.edge)):
            for i in range(self._num_steps):
                moved = [(way[i] - self._recording.latents[i], self._ask(model, i, way[i]) - there[i]) for way in ways]
                found.append(response(moved))
        return found

    def screen(self, responses: Sequence[float]) -> ReplayScreen:
        """Return the screen that `responses` give."""
        cloud, edge = tuple(responses[: self._num_steps]), tuple(responses[self._num_steps :])
        stepper = self._pair.stepper(self._num_steps)
        return ReplayScreen(Replay(self._recording, Responses(cloud=cloud, edge=edge), stepper))

    def _plans(self, candidate: Candidate) -> tuple[Plan, EdgePlan]:
        return plans_of(candidate, self._num_steps)

    def _results(self, plan: Plan, edge_plan: EdgePlan | None) -> list[StepResult]:
        results: list[StepResult] = []

        def on_step(result: StepResult) -> None:
            results.append(result)
            self._on_step()

        self._pair.generate(plan, edge_plan, on_step=on_step)
        return results

    def _ask(self, model: Model, step_index: int, latents: Tensor) -> Tensor:
        """Return a model's prediction on latents of the trajectory, as the scheduler consumes it."""
        schedule = self._stepper.schedule
        model_input = self._stepper.scale_model_input(latents, step_index).to(model.dtype)
        answer = self._pair.ask(model, model_input, schedule.timesteps[step_index])
        self._on_step()
        return convert_prediction(
            answer,
            latents,
            source=model.info.prediction_type,
            target=self._stepper.prediction_type,
            alpha=schedule.alphas[step_index],
            sigma=schedule.sigmas[step_index],
        )


def _relative(difference: Tensor, of: Tensor) -> list[float]:
    """Return |difference| / |of| of each picture, L2."""
    ratios: list[float] = (difference.flatten(1).norm(dim=1) / of.flatten(1).norm(dim=1)).tolist()
    return ratios


def _per_prompt(difference: Tensor, of: Tensor) -> list[float]:
    """Return mean difference / mean of, of each picture."""
    ratios: list[float] = (difference.flatten(1).mean(dim=1) / of.flatten(1).mean(dim=1)).tolist()
    return ratios
