"""Both models of a pair in one process, without a network: what a search measures plans with, and benches compare with.

Not a decision: this module, unlike the others of its folder, runs models. It is imported by those who do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.edge_lead import EdgeLead, make_edge_lead
from diffusion.measures import make_measure
from diffusion.model import Evaluation, Model
from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.predictors import COMPANIONS, Predictor, make_predictor
from diffusion.scheduler_config import default_scheduler, scheduler_config_at, scheduler_for
from diffusion.schedulers import Stepper
from diffusion.sensitivity import latents_sensitivities
from diffusion.trajectory import StepResult, Trajectory, denoise
from orchestrator.corrections import Granted, calls_left, make_corrections
from orchestrator.handoff import AgreementHandoff
from orchestrator.refresh import RefreshPolicy, make_refresh
from wire.edge_plan import EdgePlan
from wire.messages import Plan, Source


@dataclass(kw_only=True)
class Outcome:
    """What a plan gave.

    Attributes:
        latents: Final latents `[P, C, H, W]`, one row a prompt, float32.
        sources: Source of each step, in order.
        corrections: Steps after the handoff that the cloud evaluated.
        handoff_step: First step that the edge led; the step count if it never did.
        disagreement: Real step -> q of each prompt, where the edge shadowed it.
        scale: What the handoff by agreement measured, if it did.
    """

    latents: Tensor
    handoff_step: int
    sources: list[Source] = field(default_factory=list)
    corrections: list[int] = field(default_factory=list)
    disagreement: dict[int, list[float]] = field(default_factory=dict)
    scale: float | None = None

    @property
    def cloud_calls(self) -> int:
        """Evaluations in the cloud, corrections included."""
        return self.sources.count(Source.CLOUD) + len(self.corrections)


class InProcessPair:
    """Both models on one set of prompts, driven by the cloud's scheduler.

    Args:
        cloud: The large model.
        edge: The small one.
        prompts: Evaluated together, in one batch.
        seeds: One for each prompt.
        guidance_scale: Above 1 classifier-free guidance is on.
        scheduler: Command-line name; None: the default of the cloud model's family. As `scheduler` it is named.
    """

    def __init__(
        self,
        cloud: Model,
        edge: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        scheduler: str | None = None,
    ) -> None:
        self.cloud = cloud
        self.edge = edge
        self.guidance_scale = guidance_scale
        shape = cloud.latents_shape(0, 0, 1)
        config = scheduler_config_at(cloud.info.scheduler_config, shape)
        self.scheduler = scheduler or default_scheduler(cloud.info.scheduler_class, config)
        self._scheduler = scheduler_for(
            self.scheduler, config, own_class=cloud.info.scheduler_class, noise_seed=seeds[0]
        )
        self._noise = torch.cat([draw_noise(shape, seed) for seed in seeds])
        self._conditionings = {
            model: [model.encode_prompt(prompt, guided=guidance_scale > 1.0) for prompt in prompts]
            for model in (cloud, edge)
        }

    def stepper(self, num_inference_steps: int) -> Stepper:
        """Return a fresh scheduler."""
        name, config = self._scheduler
        return Stepper(name, config, num_inference_steps, self.cloud.device)

    def ask(self, model: Model, latents: Tensor, timestep: float) -> Tensor:
        """Return a model's guided predictions `[P, C, H, W]` of its own type for model inputs `[P, C, H, W]`."""
        evaluations = [
            Evaluation(
                latents=row[None], timestep=timestep, conditioning=conditioning, guidance_scale=self.guidance_scale
            )
            for row, conditioning in zip(latents, self._conditionings[model], strict=True)
        ]
        return torch.cat(model.evaluate(evaluations))

    def generate(
        self,
        plan: Plan,
        edge_plan: EdgePlan | None = None,
        *,
        on_step: Callable[[StepResult], object] = lambda result: None,
    ) -> Outcome:
        """Return what a plan gives.

        Several prompts share every decision: they hand off by their mean disagreement, and are corrected when the one
        that disagrees most wants it.

        Raises:
            ArithmeticError: The small model has no finite answer where it leads.
        """
        edge_plan = edge_plan or EdgePlan()
        stepper = self.stepper(plan.num_inference_steps)
        lead = make_edge_lead(
            lambda latents, timestep: self.ask(self.edge, latents, timestep),
            stepper,
            prediction_type=self.edge.info.prediction_type,
            residual=edge_plan.residual,
            fade=edge_plan.fade,
            reach=edge_plan.reach,
            compares=edge_plan.corrections == "disagreement",
        )
        refresh = make_refresh(plan)
        trajectory = _start(plan, refresh, stepper, self._noise, self.cloud.dtype)
        outcome = Outcome(latents=self._noise, handoff_step=plan.handoff_step)
        self._cloud_leads(trajectory, refresh, plan, edge_plan, lead, outcome, on_step)
        self._edge_leads(trajectory, edge_plan, lead, outcome, on_step)
        return outcome

    def _cloud_leads(
        self,
        trajectory: Trajectory,
        refresh: RefreshPolicy,
        plan: Plan,
        edge_plan: EdgePlan,
        lead: EdgeLead,
        outcome: Outcome,
        on_step: Callable[[StepResult], object],
    ) -> None:
        agreement = None if edge_plan.agreement is None else AgreementHandoff(edge_plan.agreement, plan)
        handoff_step: int | None = None
        prediction_type = self.cloud.info.prediction_type
        measure = (
            make_measure(refresh.measure, trajectory, prediction_type=prediction_type) if refresh.measure else None
        )
        for result in denoise(
            trajectory,
            lambda at: self.ask(self.cloud, at.model_input(), at.timestep),
            lambda step_index: refresh.decide(step_index, measure.value() if measure else None) is Source.CLOUD,
            stop_step=plan.handoff_step,
            prediction_type=prediction_type,
        ):
            if measure:
                measure.observe(result)
            on_step(result)
            outcome.sources.append(Source.CLOUD if result.evaluated else Source.EXTRAPOLATED)
            if edge_plan.shadow and result.evaluated:
                measured = lead.shadow(result.step_index, result.noise_pred, result.latents_before)
                outcome.disagreement[result.step_index] = measured
                if agreement:
                    agreement.observe(result.step_index, sum(measured) / len(measured))
                    if result.step_index + 1 == handoff_step:
                        break
                    handoff_step = handoff_step or agreement.handoff_after(result.step_index)
        outcome.handoff_step = trajectory.step_index
        outcome.scale = agreement.scale if agreement else None

    def _edge_leads(
        self,
        trajectory: Trajectory,
        edge_plan: EdgePlan,
        lead: EdgeLead,
        outcome: Outcome,
        on_step: Callable[[StepResult], object],
    ) -> None:
        stepper = lead.stepper
        tail = Trajectory(trajectory.latents, stepper, start_step=trajectory.step_index, dtype=self.edge.dtype)
        corrections = Granted(
            policy=make_corrections(edge_plan, latents_sensitivities(stepper.schedule, stepper.prediction_type)),
            num_inference_steps=stepper.schedule.num_steps,
            calls_left=calls_left(edge_plan, outcome.sources.count(Source.CLOUD)),
        )

        def edge_step(result: StepResult) -> None:
            outcome.sources.append(Source.EDGE)
            on_step(result)

        lead.take_over(tail)
        while lead.run_to_call(corrections.wants_call, edge_step):
            outcome.corrections.append(tail.step_index)
            corrections.corrected(tail.step_index)
            edge_step(lead.advance(self._correction(tail, stepper)))
        outcome.latents = tail.latents.float()

    def _correction(self, at: Trajectory, stepper: Stepper) -> Tensor:
        """Return the large model's prediction at a trajectory's next step, as the scheduler consumes it."""
        return convert_prediction(
            self.ask(self.cloud, at.model_input(), at.timestep),
            at.latents,
            source=self.cloud.info.prediction_type,
            target=stepper.prediction_type,
            alpha=at.schedule.alphas[at.step_index],
            sigma=at.schedule.sigmas[at.step_index],
        )


def _start(plan: Plan, refresh: RefreshPolicy, stepper: Stepper, latents: Tensor, dtype: torch.dtype) -> Trajectory:
    """Return a trajectory with the plan's predictor, and its companion if the policy measures the embedded error."""

    def predictor(name: str) -> Predictor:
        prediction_type = stepper.prediction_type
        return make_predictor(name, stepper.schedule, prediction_type=prediction_type, smoothing=plan.smoothing)

    return Trajectory(
        latents * stepper.schedule.init_noise_sigma,
        stepper,
        predictor=predictor(plan.predictor),
        companion=predictor(COMPANIONS[plan.predictor]) if refresh.measure == "embedded-error" else None,
        dtype=dtype,
    )
