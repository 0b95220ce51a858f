"""What a run of a searched plan is: the cloud's part and the edge's, cut to the calls and the handoff that are allowed.

A plan that needs more calls than are allowed keeps its first ones and drops the rest: corrections first, then real
steps, and the edge leads from where the next real step would have been.
"""

from __future__ import annotations

import math
from itertools import pairwise

from orchestrator.plan import least_reach
from orchestrator.refresh import make_refresh
from orchestrator.searched_plan import PlanFile, SearchedPlan
from wire.edge_plan import Agreement, EdgePlan
from wire.messages import MIN_WARMUP_STEPS, Plan


def plan_and_edge_plan(
    file: PlanFile,
    searched: SearchedPlan,
    *,
    tolerance: float,
    max_cloud_calls: int | None = None,
    corrections: str | None = None,
    shadow: bool = True,
    handoff_step: int | None = None,
) -> tuple[Plan, EdgePlan]:
    """Turn a searched plan into the two plans of a run.

    Agreement allows what the user does, but no less than the plan's own error: a prompt of average disagreement is
    handed off no later than the search says, also where the budget or the deadline leaves no plan within the tolerance.

    Args:
        file: Where it comes from.
        searched: The plan.
        tolerance: Error of the final latents that is allowed.
        max_cloud_calls: Hard bound on evaluations in the cloud. Where the plan needs more it is cut (see above); where
            only a prompt that needs the cloud for longer would, the latest handoff comes sooner, so that the planned
            corrections remain.
        corrections: Instead of the plan's own, one of `wire.edge_plan.CORRECTIONS`.
        shadow: False: no agreement, the handoff comes at the planned step, and the residual is known from the first
            correction on.
        handoff_step: Exactly there, without agreement. Beyond the plan's latest handoff the planned corrections up
            to there are the cloud's real steps.

    Raises:
        ValueError: The explicit handoff step needs more calls than are allowed, or is none of this plan's steps.
    """
    num_steps = file.num_inference_steps
    bound = num_steps if max_cloud_calls is None else max_cloud_calls
    if corrections is None:
        corrections = "planned" if searched.correction_steps else "none"
    last = _latest_handoff(searched, corrections, bound, shadow=shadow) if handoff_step is None else handoff_step
    agreement = None
    if shadow and handoff_step is None and any(math.isfinite(error) for error in searched.tail_error[1:last]):
        own_error = searched.tail_error[searched.handoff_step]
        agreement = Agreement(
            disagreement=file.disagreement,
            tail_error=searched.tail_error,
            tolerance=max(tolerance, own_error if math.isfinite(own_error) else 0.0),
        )
    plan = Plan(
        num_inference_steps=num_steps,
        handoff_step=last,
        refresh="listed",
        predictor=searched.predictor,
        real_steps=real_steps_before(searched, last),
        max_cloud_calls=None if max_cloud_calls is None else min(bound, num_steps),
    )
    make_refresh(plan)  # refuses what does not fit together
    learns = searched.residual is not None or corrections == "disagreement"
    edge_plan = EdgePlan(
        shadow=shadow and (agreement is not None or (learns and 0 < last < num_steps)),
        residual=searched.residual,
        fade=searched.fade,
        reach=_reach(searched, num_steps),
        corrections=corrections,
        correction_steps=searched.correction_steps if corrections == "planned" else (),
        tolerance=tolerance if corrections == "disagreement" else 0.0,
        max_cloud_calls=max_cloud_calls,
        agreement=agreement,
    )
    return plan, edge_plan


def _reach(searched: SearchedPlan, num_steps: int) -> int:
    """Return the longest gap between two calls that the search ran the residual over.

    Where a call does not come - the cloud is lost, the budget is spent, the handoff comes early - it must not be
    extrapolated further than that.
    """
    before = [step for step in searched.real_steps if step < searched.handoff_step]
    calls = [*before[-1:], *searched.correction_steps, num_steps]
    return max([least_reach(num_steps), *(later - earlier for earlier, later in pairwise(calls))])


def real_steps_before(searched: SearchedPlan, handoff_step: int) -> tuple[int, ...]:
    """Return the cloud's real steps before a handoff wherever it is."""
    warmup = range(MIN_WARMUP_STEPS)
    beyond = [step for step in searched.correction_steps if step >= searched.latest_handoff_step]
    return tuple(sorted(step for step in {*warmup, *searched.real_steps, *beyond} if step < handoff_step))


def _latest_handoff(searched: SearchedPlan, corrections: str, bound: int, *, shadow: bool) -> int:
    """Return the latest handoff whose real steps, with the corrections that follow, are within a bound on calls."""
    num_steps = len(searched.tail_error) - 1
    planned = real_steps_before(searched, searched.handoff_step)
    if len(planned) > bound:
        return planned[bound]
    latest = searched.handoff_step
    while shadow and latest < searched.latest_handoff_step:
        num_corrections = {
            "planned": sum(step > latest for step in searched.correction_steps),
            "final": int(latest + 1 < num_steps),
        }.get(corrections, 0)
        if len(real_steps_before(searched, latest + 1)) + num_corrections > bound:
            break
        latest += 1
    return latest
