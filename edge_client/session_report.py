"""What the orchestrator is told of a generation: timings and counts, nothing of its prompt or its pictures."""

from __future__ import annotations

from edge_client.cloud_link import CloudLink
from edge_client.recorder import Recorder
from edge_client.request import GenerationRequest
from orchestrator.link import nearest_rank
from wire.fleet_messages import KnownCosts, PlanQuery, SessionReport
from wire.messages import Source


def make_session_report(
    recorder: Recorder,
    outcome: str,
    link: CloudLink | None,
    *,
    latents_elements: int = 0,
    cloud_step_seconds: float | None = None,
) -> SessionReport:
    """Return the report of a generation.

    Args:
        recorder: Of the generation.
        outcome: One of `wire.fleet_messages.OUTCOMES`.
        link: To the cloud that it used; None: it used none.
        latents_elements: Product of the latents' shape; 0 where there were none.
        cloud_step_seconds: One real step in the cloud, without what ran beside it.
    """
    decision = recorder.decision
    estimate = None if decision is None else decision.estimate
    nfe = recorder.nfe
    rtts = recorder.present_rtt_seconds
    waits = [step.queue_seconds for step in recorder.present_cloud_steps if step.source is Source.CLOUD]
    return SessionReport(
        mode=recorder.request.mode,
        outcome=outcome,
        replica="" if link is None else link.address,
        total_seconds=recorder.seconds["total"],
        connect_seconds=recorder.seconds["connect"],
        predicted_seconds=None if estimate is None else estimate.total_seconds,
        calibration=1.0 if decision is None else decision.calibration,
        nfe_cloud=nfe["cloud"],
        nfe_extrapolated=nfe["extrapolated"],
        nfe_edge=nfe["edge"],
        nfe_correction=nfe["corrections"],
        handoff_seconds={} if recorder.handoff_reason is None else dict(recorder.handoff_stages),
        cloud_step_seconds=cloud_step_seconds,
        cloud_queue_seconds=sum(waits) / len(waits) if waits else None,
        rtt_seconds=nearest_rank(rtts, 0.5) if rtts else None,
        bandwidth_bytes_per_second=None if link is None else link.estimate.bandwidth_bytes_per_second,
        latents_elements=latents_elements,
    )


def make_plan_query(
    request: GenerationRequest, link: CloudLink, edge_fingerprint: str, latents_elements: int, costs: KnownCosts
) -> PlanQuery:
    """Return the query for a request's plan."""
    options = request.plan_options
    return PlanQuery(
        cloud_fingerprint=link.description.model.fingerprint,
        edge_fingerprint=edge_fingerprint,
        scheduler=request.scheduler,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=request.weight,
        latents_elements=latents_elements,
        costs=costs,
        deadline_seconds=None if options.deadline_ms is None else options.deadline_ms / 1000,
        tolerance=options.tolerance,
        max_cloud_calls=options.max_cloud_calls,
        corrections=options.corrections,
        shadow=options.shadow,
        handoff_step=options.handoff_step,
        replica=link.address,
    )
