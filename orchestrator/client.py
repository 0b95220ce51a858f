"""Talking to an orchestrator: short calls that never keep anybody waiting."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from protos import orchestrator_v1_pb2 as pb
from protos.orchestrator_v1_pb2_grpc import OrchestratorStub
from wire.calls import call_unary
from wire.convert.fleet import decode_replicas, decode_status, encode_report
from wire.convert.plans import decode_plan_answer, encode_plan_query
from wire.credentials import Credentials
from wire.errors import NotServing, Unauthenticated, VersionMismatch, from_status
from wire.fleet_messages import FleetStatus, PlanAnswer, PlanQuery, Replica, SessionReport

CALL_SECONDS = 1.0
"""What one call may take; nothing that the orchestrator says is worth more of a generation."""
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class OrchestratorClient:
    """One orchestrator.

    Args:
        address: `HOST:PORT`.
        credentials: Token and certificates.

    Raises:
        ValueError: The token would travel in the clear to another host.
        OSError: The token or a certificate cannot be read.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = address
        self._credentials = credentials
        credentials.metadata(address)  # what is wrong with it is known at once
        self._channel = credentials.channel(address)
        self._stub: Any = OrchestratorStub(self._channel)

    async def choose_plan(self, query: PlanQuery) -> PlanAnswer:
        """Return the plan for a query.

        Raises:
            EcdiffError: As the next ones: it does not answer in time, refuses, or answers nonsense.
        """
        return decode_plan_answer(await self._call(self._stub.ChoosePlan, encode_plan_query(query)))

    async def list_replicas(self, edge_fingerprint: str) -> tuple[Replica, ...]:
        """Return the replicas, the one to try first in front."""
        request = pb.ListReplicasRequest(edge_fingerprint=edge_fingerprint)
        return decode_replicas(await self._call(self._stub.ListReplicas, request))

    async def report_session(self, report: SessionReport) -> None:
        """Tell how a generation went."""
        await self._call(self._stub.ReportSession, encode_report(report))

    async def fleet_status(self) -> FleetStatus:
        """Return what it knows."""
        return decode_status(await self._call(self._stub.FleetStatus, pb.FleetStatusRequest()))

    async def close(self, grace_seconds: float | None = None) -> None:
        """Let go of the connection; calls that are under way are cancelled after the grace period, or at once."""
        await self._channel.close(grace_seconds)

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            metadata = self._credentials.metadata(self.address)
            return await call_unary(method, request, timeout_seconds=CALL_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                text = f"the service at {self.address} is no orchestrator, or an older one: check the address"
                raise VersionMismatch(text) from None
            told = from_status(code, error.details(), error.trailing_metadata())
            if isinstance(told, Unauthenticated):
                text = f"the orchestrator at {self.address} refused the token: check --auth-token-file ({told})"
                raise Unauthenticated(text) from None
            if code in _GONE:
                raise NotServing(f"no orchestrator answers at {self.address}") from None
            raise told from None
