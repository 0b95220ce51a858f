"""Which plan an edge gets: the decision is `orchestrator.decision`'s, the costs are the edge's and the fleet's."""

from __future__ import annotations

from dataclasses import fields, replace

from orchestrator.decision import Decision, decide_from_file, decide_without_search
from orchestrator.plan import PlanOptions
from orchestrator.service.fleet import Fleet
from orchestrator.service.library import PlanLibrary
from wire.errors import InvalidRequest
from wire.fleet_messages import PlanAnswer, PlanQuery

_MAX_LINE_CHARS = 500


def choose(query: PlanQuery, library: PlanLibrary, fleet: Fleet, now_seconds: float) -> PlanAnswer:
    """Return the plan for a query.

    Raises:
        InvalidRequest: Its options do not fit together, or a deadline comes without the costs.
    """
    costs = fleet.costs(query.costs, query.replica, query.latents_elements, now_seconds)
    calibration = fleet.calibration(query.replica, now_seconds)
    if costs is None:
        calibration = 1.0
    else:
        costs = costs.scaled(calibration)
    found = library.find(
        cloud_fingerprint=query.cloud_fingerprint,
        edge_fingerprint=query.edge_fingerprint,
        scheduler=query.scheduler,
        num_steps=query.num_inference_steps,
        guidance_scale=query.guidance_scale,
    )
    options = plan_options(query)
    try:
        if found is None:
            why = f"no searched plan for this pair, {query.scheduler} with {query.num_inference_steps} steps"
            decision = decide_without_search(options, why, costs=costs)
        else:
            name, file = found
            decision = decide_from_file(file, name, options, guidance_scale=query.guidance_scale, costs=costs)
    except ValueError as error:
        raise InvalidRequest(str(error)[:_MAX_LINE_CHARS]) from error
    return as_answer(replace(decision, calibration=calibration))


def plan_options(query: PlanQuery) -> PlanOptions:
    """Return a query's options as those of a plan."""
    return PlanOptions(
        num_inference_steps=query.num_inference_steps,
        handoff_step=query.handoff_step,
        tolerance=query.tolerance,
        max_cloud_calls=query.max_cloud_calls,
        corrections=query.corrections,
        shadow=query.shadow,
        deadline_ms=None if query.deadline_seconds is None else 1000 * query.deadline_seconds,
    )


def as_answer(decision: Decision) -> PlanAnswer:
    """Return a decision as it travels: all but the start, which is every query's, the noise."""
    return PlanAnswer(**{field.name: getattr(decision, field.name) for field in fields(PlanAnswer)})
