"""A small plan file, with figures made up: what a choice can be made from."""

from __future__ import annotations

import math

from orchestrator.cost import Costs
from orchestrator.searched_plan import PlanFile, SearchedPlan

NUM_STEPS = 10
COSTS = Costs(
    rtt_seconds=0.02,
    bandwidth_bytes_per_second=1e6,
    latents_bytes=8192,
    cloud_step_seconds=0.1,
    cloud_queue_seconds=0.0,
    edge_step_seconds=0.02,
    encode_prompt_seconds=0.01,
    edge_encode_prompt_seconds=0.015,
    decode_seconds=0.03,
    shared_cores=False,
)


def searched(
    real_steps: tuple[int, ...],
    handoff_step: int,
    correction_steps: tuple[int, ...],
    error: float,
    *,
    latest: int | None = None,
    residual: str | None = "linear",
) -> SearchedPlan:
    """Return a plan whose curve falls to twice, then once, then half its error around the handoff."""
    corrections = sum(step >= handoff_step for step in correction_steps)
    curve = [math.inf if i < 2 else error * 2.0 ** ((handoff_step - i) / 2) for i in range(NUM_STEPS + 1)]
    return SearchedPlan(
        real_steps=real_steps,
        handoff_step=handoff_step,
        latest_handoff_step=handoff_step if latest is None else latest,
        correction_steps=correction_steps,
        predictor="linear",
        residual=residual,
        fade=(),
        tail_error=tuple(curve),
        cloud_calls=sum(step < handoff_step for step in real_steps) + corrections,
        edge_steps=NUM_STEPS - handoff_step - corrections,
        error=error,
        error_interval=(0.9 * error, 1.1 * error),
    )


FILE = PlanFile(
    cloud_fingerprint="c" * 8,
    edge_fingerprint="e" * 8,
    scheduler="ddim",
    num_inference_steps=NUM_STEPS,
    guidance_scale=2.0,
    prompts=("red apple, fluent style",),
    seeds=(0,),
    command="made up",
    disagreement=(0.5,) * NUM_STEPS,
    sensitivity=(0.1,) * NUM_STEPS,
    plans=(
        searched((0, 1, 4), 3, (7,), 0.4, latest=5),
        searched((0, 1, 3, 5, 7), 4, (6, 8), 0.1, latest=8),
        searched((0, 1, 2, 4, 6, 8), 7, (9,), 0.05, latest=9),
        searched((0, 1, 2, 3, 4, 5, 6, 8, 9), 10, (), 0.01),
    ),
    default_tolerance=0.12,
)
