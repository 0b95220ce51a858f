"""A plan asked of the orchestrator, and its answer."""

from __future__ import annotations

import math
from typing import Any

from protos import ecdiff_v1_pb2
from protos import orchestrator_v1_pb2 as pb
from wire.convert import checks
from wire.convert.parts import decode_plan
from wire.edge_plan import Agreement, EdgePlan
from wire.errors import InvalidRequest, ProtocolError
from wire.fleet_messages import KnownCosts, LatencyEstimate, PlanAnswer, PlanQuery

MAX_BYTES_PER_SECOND = 1e15
MAX_ELEMENTS = 2**40
MAX_GUIDANCE_SCALE = 1000.0
MAX_TOLERANCE = 1e6
MAX_LINES = 8
MAX_LINE_CHARS = 500
# Far outside of what an orchestrator may learn; within it a prediction keeps its meaning.
MIN_CALIBRATION, MAX_CALIBRATION = 0.01, 100.0


def encode_plan_query(query: PlanQuery) -> pb.ChoosePlanRequest:
    """Return the protobuf message."""
    fields = {name: value for name, value in vars(query).items() if name not in ("costs", "shadow")}
    return pb.ChoosePlanRequest(**fields, no_shadow=not query.shadow, costs=pb.KnownCosts(**vars(query.costs)))


def decode_plan_query(message: pb.ChoosePlanRequest) -> PlanQuery:
    """Check and return a query; that the options fit together is for who makes the plan.

    Raises:
        InvalidRequest: A value is missing or out of range.
    """
    steps = checks.count(message.num_inference_steps, "num_inference_steps", low=1, high=checks.MAX_STEPS)
    handoff_step, calls = given(message, "handoff_step"), given(message, "max_cloud_calls")
    corrections = given(message, "corrections")
    return PlanQuery(
        cloud_fingerprint=checks.text(message.cloud_fingerprint, "cloud_fingerprint", min_chars=1),
        edge_fingerprint=checks.text(message.edge_fingerprint, "edge_fingerprint", min_chars=1),
        scheduler=checks.text(message.scheduler, "scheduler", min_chars=1),
        num_inference_steps=steps,
        guidance_scale=checks.number(message.guidance_scale, "guidance_scale", low=0, high=MAX_GUIDANCE_SCALE),
        latents_elements=checks.count(message.latents_elements, "latents_elements", low=1, high=MAX_ELEMENTS),
        costs=_decode_costs(message.costs),
        deadline_seconds=optional_seconds(message, "deadline_seconds"),
        tolerance=_optional_number(message, "tolerance", high=MAX_TOLERANCE),
        max_cloud_calls=None if calls is None else checks.count(calls, "max_cloud_calls", high=2**31),
        corrections=None if corrections is None else checks.text(corrections, "corrections", min_chars=1),
        shadow=not message.no_shadow,
        handoff_step=None if handoff_step is None else checks.count(handoff_step, "handoff_step", high=steps),
        replica=checks.text(message.replica, "replica"),
    )


def _decode_costs(message: pb.KnownCosts) -> KnownCosts:
    names = [name for name in KnownCosts.__dataclass_fields__ if name.endswith("_seconds")]
    return KnownCosts(
        **{name: optional_seconds(message, name) for name in names},
        bandwidth_bytes_per_second=optional_bandwidth(message),
        latents_bytes=checks.count(message.latents_bytes, "latents_bytes", low=1, high=8 * MAX_ELEMENTS),
        shared_cores=message.shared_cores,
    )


def encode_plan_answer(answer: PlanAnswer) -> pb.ChoosePlanResponse:
    """Return the protobuf message."""
    estimate = answer.estimate
    return pb.ChoosePlanResponse(
        plan=ecdiff_v1_pb2.Plan(**vars(answer.plan)),
        edge_plan=_encode_edge_plan(answer.edge_plan),
        origin=answer.origin,
        why=answer.why,
        lines=answer.lines,
        expected_error=answer.expected_error,
        estimate=None if estimate is None else pb.LatencyEstimate(**vars(estimate)),
        calibration=answer.calibration,
    )


def decode_plan_answer(message: pb.ChoosePlanResponse) -> PlanAnswer:
    """Check and return an answer.

    Raises:
        ProtocolError: A value is missing or out of range. (Not InvalidRequest: that is what the orchestrator answers.)
    """
    try:
        return _decode_answer(message)
    except InvalidRequest as error:
        raise ProtocolError(f"the orchestrator sent nonsense: {error}") from error


def _decode_answer(message: pb.ChoosePlanResponse) -> PlanAnswer:
    checks.require(message.HasField("plan"), "an answer without a plan")
    checks.require(message.HasField("edge_plan"), "an answer without the edge's plan")
    checks.require(len(message.lines) <= MAX_LINES, f"lines has {len(message.lines)} items, the cap is {MAX_LINES}")
    plan = decode_plan(message.plan)
    calibration = checks.number(message.calibration, "calibration", low=MIN_CALIBRATION, high=MAX_CALIBRATION)
    return PlanAnswer(
        plan=plan,
        edge_plan=_decode_edge_plan(message.edge_plan, plan.num_inference_steps),
        origin=checks.text(message.origin, "origin", min_chars=1),
        why=checks.text(message.why, "why", max_chars=MAX_LINE_CHARS),
        lines=tuple(checks.text(line, "a line", max_chars=MAX_LINE_CHARS) for line in message.lines),
        expected_error=_optional_number(message, "expected_error"),
        estimate=_decode_estimate(message.estimate) if message.HasField("estimate") else None,
        calibration=calibration,
    )


def _encode_edge_plan(edge_plan: EdgePlan) -> pb.EdgePlan:
    fields = vars(edge_plan) | {"agreement": None}
    agreement = edge_plan.agreement
    message = pb.EdgePlan(**fields)
    if agreement is not None:
        message.agreement.CopyFrom(pb.Agreement(**vars(agreement)))
    return message


def _decode_edge_plan(message: pb.EdgePlan, num_inference_steps: int) -> EdgePlan:
    fade, steps = tuple(message.fade), tuple(message.correction_steps)
    checks.require(len(fade) in (0, num_inference_steps), f"fade has {len(fade)} values, not {num_inference_steps}")
    checks.require(len(steps) <= num_inference_steps, f"{len(steps)} correction_steps are too many")
    checks.require(max(steps, default=0) < num_inference_steps, "correction_steps end behind the last step")
    try:
        return EdgePlan(
            shadow=message.shadow,
            residual=given(message, "residual"),
            fade=fade,
            reach=given(message, "reach"),
            corrections=message.corrections,
            correction_steps=steps,
            tolerance=message.tolerance,
            max_cloud_calls=given(message, "max_cloud_calls"),
            agreement=_decode_agreement(message.agreement, num_inference_steps)
            if message.HasField("agreement")
            else None,
        )
    except ValueError as error:
        raise InvalidRequest(f"the edge's plan: {_short(error)}") from error


def _decode_agreement(message: pb.Agreement, num_inference_steps: int) -> Agreement:
    num = len(message.disagreement)
    checks.require(num == num_inference_steps, f"disagreement has {num} values, not {num_inference_steps}")
    return Agreement(
        disagreement=tuple(message.disagreement), tail_error=tuple(message.tail_error), tolerance=message.tolerance
    )


def _decode_estimate(message: pb.LatencyEstimate) -> LatencyEstimate:
    names = [name for name in LatencyEstimate.__dataclass_fields__ if name.endswith("_seconds")]
    return LatencyEstimate(
        handoff_step=checks.count(message.handoff_step, "the estimate's handoff_step", high=checks.MAX_STEPS),
        cloud_calls=checks.count(message.cloud_calls, "the estimate's cloud_calls", high=2 * checks.MAX_STEPS),
        **{name: checks.number(getattr(message, name), name, low=0, high=checks.MAX_SECONDS) for name in names},
    )


def given(message: Any, name: str) -> Any:
    """Return an optional field's value, None where it is absent."""
    return getattr(message, name) if message.HasField(name) else None


def optional_seconds(message: Any, name: str) -> float | None:
    """Return an optional duration of at most a day."""
    return _optional_number(message, name, high=checks.MAX_SECONDS)


def optional_bandwidth(message: Any) -> float | None:
    """Return `bandwidth_bytes_per_second`, which is above 0 where it is given."""
    value = given(message, "bandwidth_bytes_per_second")
    return None if value is None else checks.number(value, "bandwidth", low=1e-3, high=MAX_BYTES_PER_SECOND)


def _optional_number(message: Any, name: str, *, high: float = math.inf) -> float | None:
    value = given(message, name)
    return None if value is None else checks.number(value, name, low=0, high=high)


def _short(error: ValueError) -> str:
    return str(error)[:MAX_LINE_CHARS]
