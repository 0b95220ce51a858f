"""Searched plans for the tiny pair: curves made up, so that a test knows where the edge takes over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.searched_plan import PlanFile, SearchedPlan
from wire.messages import Description

STEPS = 12
# What the tiny pair measures, whatever the prompt and the scheduler: mean |edge - cloud| / mean |cloud|.
DISAGREEMENT = 1.46


def searched(
    real_steps: Sequence[int],
    handoff_step: int,
    *,
    latest: int | None = None,
    correction_steps: Sequence[int] = (),
    residual: str | None = "linear",
    num_steps: int = STEPS,
) -> SearchedPlan:
    """Return a plan whose error falls evenly from 1 at step 0 to 0 at the end; the edge may begin from step 2 on.

    Of `real_steps` those before the latest handoff are the plan's.
    """
    latest = handoff_step if latest is None else latest
    real_steps = tuple(step for step in real_steps if step < latest)
    corrections = sum(step >= handoff_step for step in correction_steps)
    tail_error = [math.inf if step < 2 else (num_steps - step) / num_steps for step in range(num_steps + 1)]
    error = 1.0 if handoff_step < 2 else tail_error[handoff_step]
    return SearchedPlan(
        real_steps=real_steps,
        handoff_step=handoff_step,
        latest_handoff_step=latest,
        correction_steps=tuple(correction_steps),
        predictor="linear",
        residual=residual,
        fade=(),
        tail_error=tuple(tail_error),
        cloud_calls=sum(step < handoff_step for step in real_steps) + corrections,
        edge_steps=num_steps - handoff_step - corrections,
        error=error,
        error_interval=(error, error),
    )


def plan_file(
    description: Description,
    edge_fingerprint: str,
    *plans: SearchedPlan,
    scheduler: str = "ddim",
    scale: float = 1.0,
    default_tolerance: float = 0.0,
) -> PlanFile:
    """Return a file for the served model and an edge model.

    Args:
        description: Of the cloud.
        edge_fingerprint: Of the small model.
        *plans: By rising calls.
        scheduler: Command-line name.
        scale: How much harder than its search prompts any prompt is.
        default_tolerance: Of the file.
    """
    num_steps = len(plans[0].tail_error) - 1
    return PlanFile(
        cloud_fingerprint=description.model.fingerprint,
        edge_fingerprint=edge_fingerprint,
        scheduler=scheduler,
        num_inference_steps=num_steps,
        guidance_scale=2.0,
        prompts=("a dog",),
        seeds=(0,),
        command="made up",
        disagreement=(DISAGREEMENT / scale,) * num_steps,
        sensitivity=(0.1,) * num_steps,
        plans=plans,
        default_tolerance=default_tolerance,
    )
