"""Replicas, session reports and the fleet's status."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from protos import ecdiff_v1_pb2
from protos import orchestrator_v1_pb2 as pb
from wire.convert import checks
from wire.convert.parts import decode_model, encode_model
from wire.convert.plans import (
    MAX_CALIBRATION,
    MAX_ELEMENTS,
    MAX_LINE_CHARS,
    MIN_CALIBRATION,
    optional_bandwidth,
    optional_seconds,
)
from wire.errors import InvalidRequest, ProtocolError
from wire.fleet_messages import HANDOFF_STAGES, OUTCOMES, FleetStatus, PlanFileStatus, Replica, SessionReport
from wire.messages import Load

MAX_REPLICAS = 256
MAX_PLAN_FILES = 1024

T = TypeVar("T")


def encode_report(report: SessionReport) -> pb.ReportSessionRequest:
    """Return the protobuf message."""
    return pb.ReportSessionRequest(**vars(report))


def decode_report(message: pb.ReportSessionRequest) -> SessionReport:
    """Check and return a report; its mode and replica are for those to judge who know them.

    Raises:
        InvalidRequest: A value is unknown or out of range.
    """
    checks.require(message.outcome in OUTCOMES, f"outcome must be one of {', '.join(OUTCOMES)}")
    for stage, value in message.handoff_seconds.items():
        checks.require(stage in HANDOFF_STAGES, f"a handoff has the stages {', '.join(HANDOFF_STAGES)}")
        _seconds(value, stage)
    return SessionReport(
        mode=checks.text(message.mode, "mode", min_chars=1),
        outcome=message.outcome,
        replica=checks.text(message.replica, "replica"),
        total_seconds=_seconds(message.total_seconds, "total_seconds"),
        connect_seconds=_seconds(message.connect_seconds, "connect_seconds"),
        calibration=_calibration(message.calibration),
        nfe_cloud=_nfe(message, "nfe_cloud"),
        nfe_extrapolated=_nfe(message, "nfe_extrapolated"),
        nfe_edge=_nfe(message, "nfe_edge"),
        nfe_correction=_nfe(message, "nfe_correction"),
        handoff_seconds=dict(message.handoff_seconds),
        predicted_seconds=optional_seconds(message, "predicted_seconds"),
        cloud_step_seconds=optional_seconds(message, "cloud_step_seconds"),
        cloud_queue_seconds=optional_seconds(message, "cloud_queue_seconds"),
        rtt_seconds=optional_seconds(message, "rtt_seconds"),
        bandwidth_bytes_per_second=optional_bandwidth(message),
        latents_elements=checks.count(message.latents_elements, "latents_elements", high=MAX_ELEMENTS),
    )


def encode_replicas(replicas: Iterable[Replica]) -> pb.ListReplicasResponse:
    """Return the protobuf message."""
    return pb.ListReplicasResponse(replicas=[_encode_replica(each) for each in replicas])


def decode_replicas(message: pb.ListReplicasResponse) -> tuple[Replica, ...]:
    """Check and return replicas.

    Raises:
        ProtocolError: A value is missing or out of range.
    """
    return _from_orchestrator(lambda: _decode_replicas(message.replicas))


def encode_status(status: FleetStatus) -> pb.FleetStatusResponse:
    """Return the protobuf message."""
    return pb.FleetStatusResponse(
        version=status.version,
        uptime_seconds=status.uptime_seconds,
        replicas=[_encode_replica(each) for each in status.replicas],
        plan_files=[pb.PlanFileStatus(**vars(each)) for each in status.plan_files],
        num_plans_handed_out=status.num_plans_handed_out,
        num_reports=status.num_reports,
    )


def decode_status(message: pb.FleetStatusResponse) -> FleetStatus:
    """Check and return a status.

    Raises:
        ProtocolError: A value is missing or out of range.
    """
    return _from_orchestrator(lambda: _decode_status(message))


def _from_orchestrator(decode: Callable[[], T]) -> T:
    try:
        return decode()
    except InvalidRequest as error:
        raise ProtocolError(f"the orchestrator sent nonsense: {error}") from error


def _encode_replica(replica: Replica) -> pb.Replica:
    fields = {name: value for name, value in vars(replica).items() if name not in ("is_up", "model", "load")}
    return pb.Replica(
        **fields,
        up=replica.is_up,
        model=None if replica.model is None else encode_model(replica.model),
        load=ecdiff_v1_pb2.Load(**vars(replica.load)),
    )


def _decode_replicas(messages: Iterable[pb.Replica]) -> tuple[Replica, ...]:
    listed = list(messages)
    checks.require(len(listed) <= MAX_REPLICAS, f"{len(listed)} replicas, the cap is {MAX_REPLICAS}")
    return tuple(_decode_replica(each) for each in listed)


def _decode_replica(message: pb.Replica) -> Replica:
    load = message.load
    return Replica(
        address=checks.text(message.address, "a replica's address", min_chars=1),
        is_up=message.up,
        model=decode_model(message.model) if message.HasField("model") else None,
        load=Load(sessions=load.sessions, queue=load.queue, step_seconds=_seconds(load.step_seconds, "step_seconds")),
        max_sessions=message.max_sessions,
        wait_seconds=_seconds(message.wait_seconds, "wait_seconds"),
        step_seconds=_seconds(message.step_seconds, "step_seconds"),
        rtt_seconds=optional_seconds(message, "rtt_seconds"),
        calibration=_calibration(message.calibration),
        num_reports=message.num_reports,
        name=checks.text(message.name, "a replica's name"),
    )


def _decode_status(message: pb.FleetStatusResponse) -> FleetStatus:
    num_files = len(message.plan_files)
    checks.require(num_files <= MAX_PLAN_FILES, f"{num_files} plan files, the cap is {MAX_PLAN_FILES}")
    return FleetStatus(
        version=checks.text(message.version, "version"),
        uptime_seconds=checks.number(message.uptime_seconds, "uptime_seconds", low=0),
        replicas=_decode_replicas(message.replicas),
        plan_files=tuple(_decode_plan_file(each) for each in message.plan_files),
        num_plans_handed_out=message.num_plans_handed_out,
        num_reports=message.num_reports,
    )


def _decode_plan_file(message: pb.PlanFileStatus) -> PlanFileStatus:
    return PlanFileStatus(
        name=checks.text(message.name, "a plan file's name"),
        problem=checks.text(message.problem, "a plan file's problem", max_chars=MAX_LINE_CHARS),
        cloud_fingerprint=checks.text(message.cloud_fingerprint, "cloud_fingerprint"),
        edge_fingerprint=checks.text(message.edge_fingerprint, "edge_fingerprint"),
        scheduler=checks.text(message.scheduler, "scheduler"),
        num_inference_steps=checks.count(message.num_inference_steps, "num_inference_steps", high=checks.MAX_STEPS),
        guidance_scale=checks.number(message.guidance_scale, "guidance_scale", low=0),
        num_plans=message.num_plans,
    )


def _nfe(message: pb.ReportSessionRequest, name: str) -> int:
    return checks.count(getattr(message, name), name, high=checks.MAX_STEPS)


def _seconds(value: float, what: str) -> float:
    return checks.number(value, what, low=0, high=checks.MAX_SECONDS)


def _calibration(value: float) -> float:
    return checks.number(value, "calibration", low=MIN_CALIBRATION, high=MAX_CALIBRATION)
