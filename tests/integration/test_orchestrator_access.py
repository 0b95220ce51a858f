"""Who gets in at an orchestrator: token, client certificate, and what a stranger is told."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.agent import Agent
from harness.orchestrator import StartOrchestrator
from protos import orchestrator_v1_pb2 as pb
from protos.orchestrator_v1_pb2_grpc import OrchestratorStub
from wire.credentials import Credentials
from wire.errors import NotServing, Unauthenticated

pytestmark = pytest.mark.asyncio(loop_scope="session")

TLS = Path(__file__).parents[1] / "data" / "tls"
SERVER = ("--tls-cert", TLS / "server.pem", "--tls-key", TLS / "server.key", "--tls-client-ca", TLS / "ca.pem")
CALLS = {
    "ChoosePlan": pb.ChoosePlanRequest(),
    "ListReplicas": pb.ListReplicasRequest(),
    "ReportSession": pb.ReportSessionRequest(),
    "FleetStatus": pb.FleetStatusRequest(),
}


async def test_every_call_but_health_wants_the_token(start_orchestrator: StartOrchestrator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    orchestrator = start_orchestrator("--auth-token-file", tmp_path / "token")
    async with grpc.aio.insecure_channel(orchestrator.address) as channel:
        stub = OrchestratorStub(channel)
        for metadata in ((), (("authorization", "Bearer guess"),)):
            for method, request in CALLS.items():
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub, method)(request, metadata=metadata, timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert orchestrator.scrape().value("ecdiff_fleet_token_refusals_total") == 2 * len(CALLS)
    good = Credentials(token_file=tmp_path / "token")
    assert (await orchestrator.ask(lambda client: client.fleet_status(), good)).num_plans_handed_out == 0
    with pytest.raises(Unauthenticated):
        await orchestrator.status()


async def test_nobody_gets_past_the_handshake_without_a_certificate(start_orchestrator: StartOrchestrator) -> None:
    orchestrator = start_orchestrator(*SERVER)
    known = Credentials(tls_ca=TLS / "ca.pem", tls_cert=TLS / "client.pem", tls_key=TLS / "client.key")
    await orchestrator.ask(lambda client: client.fleet_status(), known)
    for stranger in (Credentials(tls_ca=TLS / "ca.pem"), Credentials()):
        with pytest.raises(NotServing):
            await orchestrator.ask(lambda client: client.fleet_status(), stranger)


async def test_nobody_is_told_the_schema(start_orchestrator: StartOrchestrator, agent: Agent) -> None:
    for address in (start_orchestrator().address, agent.address):
        async with grpc.aio.insecure_channel(address) as channel:
            for version in ("v1", "v1alpha"):
                method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
                call = channel.stream_stream(method)(iter([b""]))
                assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_one_connection_too_many_is_closed(start_orchestrator: StartOrchestrator) -> None:
    orchestrator = start_orchestrator("--max-connections", "1")
    async with grpc.aio.insecure_channel(orchestrator.address) as channel:
        await OrchestratorStub(channel).FleetStatus(pb.FleetStatusRequest(), timeout=10)
        with pytest.raises(NotServing):
            await orchestrator.status()
        await OrchestratorStub(channel).FleetStatus(pb.FleetStatusRequest(), timeout=10)
