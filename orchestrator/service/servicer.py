"""The service's four methods: parse, call, encode."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc.aio

from orchestrator.plan import MODES
from orchestrator.service.config import LOGGER_NAME
from orchestrator.service.fleet import Fleet
from orchestrator.service.library import PlanLibrary
from orchestrator.service.metrics import FleetMetrics
from orchestrator.service.planner import choose
from protos import orchestrator_v1_pb2 as pb
from protos import orchestrator_v1_pb2_grpc
from wire.convert import checks
from wire.convert.fleet import decode_report, encode_replicas, encode_status
from wire.convert.plans import decode_plan_query, encode_plan_answer
from wire.errors import InvalidRequest
from wire.fleet_messages import FleetStatus
from wire.serving.answer import answer

_log = logging.getLogger(LOGGER_NAME)

Context = grpc.aio.ServicerContext[Any, Any]


class Orchestrator(orchestrator_v1_pb2_grpc.OrchestratorServicer):
    """The gRPC methods.

    Args:
        library: The plans.
        fleet: The replicas.
        metrics: Counts.
        version: Of this package.
        on_report: Called when the estimates of a replica may have changed.
    """

    def __init__(
        self,
        library: PlanLibrary,
        fleet: Fleet,
        metrics: FleetMetrics,
        *,
        version: str,
        on_report: Callable[[str], object],
    ) -> None:
        self._library = library
        self._fleet = fleet
        self._metrics = metrics
        self._version = version
        self._on_report = on_report
        self._started = time.monotonic()
        self._num_plans = self._num_reports = 0

    async def ChoosePlan(self, request: pb.ChoosePlanRequest, context: Context) -> pb.ChoosePlanResponse:
        """Choose a plan."""
        return await answer(context, _log, self._choose_plan(request))

    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Context) -> pb.ListReplicasResponse:
        """List the replicas, the best one first."""
        return await answer(context, _log, self._list_replicas(request))

    async def ReportSession(self, request: pb.ReportSessionRequest, context: Context) -> pb.ReportSessionResponse:
        """Take in how a generation went."""
        return await answer(context, _log, self._report_session(request))

    async def FleetStatus(self, request: pb.FleetStatusRequest, context: Context) -> pb.FleetStatusResponse:
        """Say what is known, for people."""
        return await answer(context, _log, self._fleet_status())

    async def _choose_plan(self, request: pb.ChoosePlanRequest) -> pb.ChoosePlanResponse:
        query = decode_plan_query(request)
        self._library.refresh()
        chosen = choose(query, self._library, self._fleet, time.time())
        self._num_plans += 1
        self._metrics.plan(chosen.origin)
        return encode_plan_answer(chosen)

    async def _list_replicas(self, request: pb.ListReplicasRequest) -> pb.ListReplicasResponse:
        edge = checks.text(request.edge_fingerprint, "edge_fingerprint")
        self._library.refresh()
        return encode_replicas(self._fleet.in_order(time.time(), lambda cloud: self._library.knows_pair(cloud, edge)))

    async def _report_session(self, request: pb.ReportSessionRequest) -> pb.ReportSessionResponse:
        report = decode_report(request)
        if report.mode not in MODES:
            raise InvalidRequest(f"mode must be one of {', '.join(MODES)}")
        self._num_reports += 1
        self._metrics.report(report)
        self._fleet.learn(report, time.time())
        if report.replica in self._fleet.states:
            self._on_report(report.replica)
        return pb.ReportSessionResponse()

    async def _fleet_status(self) -> pb.FleetStatusResponse:
        self._library.refresh()
        now_seconds = time.time()
        return encode_status(
            FleetStatus(
                version=self._version,
                uptime_seconds=time.monotonic() - self._started,
                replicas=tuple(self._fleet.replica(address, now_seconds) for address in self._fleet.states),
                plan_files=self._library.status(),
                num_plans_handed_out=self._num_plans,
                num_reports=self._num_reports,
            )
        )
