"""The report of one generation (docs/report.md), made of what its recorder holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edge_client.recorder import Recorder
from orchestrator.link import nearest_rank

QUANTILES = {"min": 0.0, "p50": 0.5, "p95": 0.95}

Report = dict[str, Any]


def make_report(recorder: Recorder) -> Report:
    """Return the report without the pictures' paths."""
    request, plan = recorder.request, recorder.plan
    reason = recorder.handoff_reason
    return {
        "request_id": request.request_id,
        "mode": request.mode,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "num_images": request.num_images,
        "video": None if request.fps is None else {"num_frames": request.num_frames, "fps": request.fps},
        "image": None if request.image is None else str(request.image),
        "strength": request.plan_options.strength,
        "start_step": recorder.start_step,
        "num_inference_steps": plan.num_inference_steps,
        "scheduler": request.scheduler,
        "text_encoder": request.text_encoder,
        "decode": recorder.decoded_by,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "handoff_step": plan.handoff_step if recorder.handoff_step is None else recorder.handoff_step,
        "clouds": list(recorder.clouds),
        "step_sources": recorder.step_sources,
        "nfe": recorder.nfe,
        "seconds": _rounded_all(recorder.seconds),
        "handoff_seconds": _rounded_all(recorder.handoff_stages),
        "network": {
            "rtt_seconds": _quantiles(recorder.rtt_seconds),
            "latents_transit_seconds": _quantiles(recorder.transit_seconds),
            "latents_age_seconds": {
                decision: _rounded(max(ages, default=None)) for decision, ages in recorder.ages.seconds.items()
            },
            "clock_offset_seconds": round(recorder.link.clock_offset_seconds, 6),
            "clock_offset_uncertainty_seconds": _rounded(recorder.link.clock_offset_uncertainty_seconds),
        },
        "bytes": {
            "sent": recorder.bytes_sent,
            "received": recorder.bytes_received,
            "latents_raw": sum(event.raw_bytes for event in recorder.codec_events),
            "latents_wire": sum(event.wire_bytes for event in recorder.codec_events),
        },
        "memory": dict(recorder.memory),
        "extrapolation_error": [round(error, 6) for error in recorder.extrapolation_errors],
        "handoff": None if reason is None else {"reason": reason.value, "step": recorder.handoff_step},
        "plan": _plan(recorder),
        "shadow": _shadow(recorder),
        "corrections": {
            "steps": list(recorder.correction_steps),
            "wait_seconds": [round(value, 6) for value in recorder.correction_seconds],
            "skipped": [{"step": step, "reason": why} for step, why in recorder.corrections_skipped],
        },
        "deadline": _deadline(recorder),
        "fallbacks": list(recorder.fallbacks),
        "warnings": list(recorder.warnings),
        "agent": None,
    }


def _plan(recorder: Recorder) -> dict[str, Any]:
    """Return what was decided before the start; empty before that."""
    decision, plan = recorder.decision, recorder.plan
    if decision is None:
        return {}
    edge_plan, estimate = decision.edge_plan, decision.estimate
    return {
        "origin": decision.origin,
        "why": decision.why,
        "expected_error": _rounded(decision.expected_error),
        "predicted_seconds": None if estimate is None else _rounded(estimate.total_seconds),
        "refresh": plan.refresh,
        "predictor": plan.predictor,
        "real_steps": list(plan.real_steps),
        "latest_handoff_step": plan.handoff_step,
        "residual": edge_plan.residual,
        "corrections": edge_plan.corrections,
        "correction_steps": list(edge_plan.correction_steps),
    }


def _shadow(recorder: Recorder) -> dict[str, Any] | None:
    """Return what the shadow measured, and what the handoff by agreement made of it; None without a shadow."""
    if recorder.decision is None or not recorder.decision.edge_plan.shadow:
        return None
    measured = sorted(recorder.disagreements.items())
    return {
        "disagreement": [{"step": step, "q": _rounded(value)} for step, value in measured],
        "skipped": recorder.shadow_skipped,
        "scale": _rounded(recorder.agreement_scale),
        "expected_error": _rounded(recorder.expected_error),
        "why": recorder.handoff_why,
    }


def _deadline(recorder: Recorder) -> dict[str, Any] | None:
    """Return deadline, prediction and outcome in milliseconds; None without a deadline."""
    wanted = recorder.request.plan_options.deadline_ms
    if wanted is None:
        return None
    estimate = None if recorder.decision is None else recorder.decision.estimate
    taken = (recorder.seconds["total"] - recorder.seconds["connect"]) * 1000
    return {
        "milliseconds": wanted,
        "predicted_milliseconds": None if estimate is None else round(estimate.total_seconds * 1000, 3),
        "missed_by_milliseconds": round(max(0.0, taken - wanted), 3),
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {name: round(nearest_rank(seconds, quantile), 6) for name, quantile in QUANTILES.items()}


def _rounded_all(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def _rounded(value: float | None) -> float | None:
    """Return a figure as the report shows it; what is not finite has no place in JSON."""
    return round(value, 6) if value is not None and math.isfinite(value) else None
