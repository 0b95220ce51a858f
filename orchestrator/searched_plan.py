"""The plan file: what a search found for one pair, scheduler, step count and guidance."""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = "ecdiff-plans-1"


@dataclass(frozen=True, kw_only=True)
class SearchedPlan:
    """One point of the Pareto set: where the cloud evaluates, who leads when, and what that gave.

    Attributes:
        real_steps: The cloud's real steps while it leads, rising, up to `latest_handoff_step`. Those from
            `handoff_step` on are run only for a prompt that needs the cloud for longer.
        handoff_step: First step of the edge model for a prompt of average disagreement; the step count means never.
        latest_handoff_step: The bound of the handoff by agreement.
        correction_steps: Where the edge asks the cloud after the handoff, rising; those before the actual handoff are
            not run.
        predictor: What the cloud extrapolates with.
        residual: What the edge extrapolates cloud minus edge with; None: the edge's own prediction alone.
        fade: Factor of the extrapolated residual at each step; empty: 1 everywhere.
        tail_error: `Agreement.tail_error`, at tail_error[handoff_step] about `error`.
        cloud_calls: Evaluations in the cloud at `handoff_step`, corrections included.
        edge_steps: Steps of the edge model at `handoff_step`, those with a correction not counted.
        error: Mean relative L2 of the final latents to all-cloud over the search prompts.
        error_interval: 95 % bootstrap interval of that mean.
    """

    real_steps: tuple[int, ...]
    handoff_step: int
    latest_handoff_step: int
    correction_steps: tuple[int, ...]
    predictor: str
    residual: str | None
    fade: tuple[float, ...]
    tail_error: tuple[float, ...]
    cloud_calls: int
    edge_steps: int
    error: float
    error_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A search's result.

    Attributes:
        cloud_fingerprint: Of the large model, as `Describe` tells it.
        edge_fingerprint: Of the small model.
        scheduler: Command-line name of the update rule.
        num_inference_steps: Steps of every plan.
        guidance_scale: What the search used.
        prompts: The search prompts.
        seeds: One per prompt.
        command: What was run.
        disagreement: q_i at each step (`Agreement.disagreement`).
        sensitivity: c_i at each step (`diffusion.sensitivity`).
        plans: The Pareto set, by rising cloud calls.
        default_tolerance: Error that is allowed where the user names none.
    """

    cloud_fingerprint: str
    edge_fingerprint: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    command: str
    disagreement: tuple[float, ...]
    sensitivity: tuple[float, ...]
    plans: tuple[SearchedPlan, ...]
    default_tolerance: float
