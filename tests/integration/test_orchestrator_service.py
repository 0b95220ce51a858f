"""`orchestrator serve` as a process: plans, replicas, reports, restarts, strangers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.cloud import Cloud, StartCloud
from harness.orchestrator import StartOrchestrator
from harness.programs import Programs
from harness.waiting import eventually
from protos import orchestrator_v1_pb2 as pb
from protos import orchestrator_v1_pb2_grpc
from wire.fleet_messages import SessionReport

FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
TLS = Path(__file__).parents[1] / "data" / "tls"


def test_no_torch_is_in_its_process(cloud: Cloud, start_orchestrator: StartOrchestrator) -> None:
    loaded = start_orchestrator("--cloud", cloud.address).loaded()
    assert "grpc" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("orchestrator.__main__", "{'torch', 'diffusers', 'numpy', 'grpc', 'asyncio', 'prometheus_client'}"),
        ("orchestrator.service.server", "{'torch', 'diffusers', 'transformers', 'diffusion', 'matplotlib'}"),
    ],
)
def test_its_modules_stay_light(modules: str, unwanted: str) -> None:
    code = f"import sys, {modules}; print({unwanted} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_sigterm_ends_it_cleanly_and_at_once(start_orchestrator: StartOrchestrator) -> None:
    orchestrator = start_orchestrator()
    asked_at = time.monotonic()
    orchestrator.program.signal(signal.SIGTERM)
    ended = orchestrator.program.wait()
    assert ended.returncode == 0
    assert time.monotonic() - asked_at < 5
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--cloud", "nowhere"), 2, "HOST:PORT"),
        (("--cloud", "a:1,a:1"), 2, "named twice"),
        (("--plans", "/nowhere"), 2, "does not exist"),
        (("--cloud-tls-cert", str(TLS / "client.pem")), 2, "belong together"),
        (("--state", __file__), 2, "is a file"),
        (("--state", "/dev/null"), 1, "the estimates cannot be kept in /dev/null"),
        (("--tls-cert", str(TLS / "client.key"), "--tls-key", str(TLS / "client.key")), 1, "no PEM certificate"),
    ],
)
def test_what_it_cannot_be_told_is_one_plain_line(
    arguments: tuple[str, ...], code: int, text: str, programs: Programs
) -> None:
    ended = programs.cold("orchestrator", "serve", *FREE_PORTS, *arguments).wait()
    assert ended.returncode == code
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert text in last
    assert "Traceback" not in ended.stderr


async def test_estimates_survive_a_restart_and_a_damaged_file_does_not_stop_it(
    cloud: Cloud, start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    arguments = ("--cloud", cloud.address, "--state", state)
    orchestrator = start_orchestrator(*arguments)
    report = SessionReport(
        mode="cloud", outcome="done", replica=cloud.address, total_seconds=3.0, predicted_seconds=2.0, rtt_seconds=0.2
    )
    for _ in range(5):
        await orchestrator.ask(lambda caller: caller.report_session(report))
    known = (await orchestrator.replicas())[cloud.address]
    orchestrator.program.signal(signal.SIGTERM)
    assert orchestrator.program.wait().returncode == 0

    again = start_orchestrator(*arguments)
    assert (await again.replicas())[cloud.address].num_reports == known.num_reports == 5
    assert (await again.replicas())[cloud.address].rtt_seconds == 0.2
    assert (await again.replicas())[cloud.address].calibration == pytest.approx(1.5)
    again.program.signal(signal.SIGTERM)
    again.program.wait()

    file = state / "estimates.json"
    file.write_text(file.read_text()[:-30])
    third = start_orchestrator(*arguments)
    assert (await third.replicas())[cloud.address].num_reports == 0
    assert "the estimates are damaged" in third.program.stderr
    assert (state / "estimates.json.damaged").exists()


async def test_a_service_that_was_killed_left_whole_files(
    cloud: Cloud, start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    arguments = ("--cloud", cloud.address, "--state", state)
    orchestrator = start_orchestrator(*arguments)
    report = SessionReport(mode="cloud", outcome="done", replica=cloud.address, rtt_seconds=0.2)
    for _ in range(3):
        await orchestrator.ask(lambda caller: caller.report_session(report))
    # It saves every 10 s.
    await eventually((state / "estimates.json").exists, "the estimates to be saved")
    orchestrator.program.kill()
    again = start_orchestrator(*arguments)
    assert (await again.replicas())[cloud.address].num_reports == 3
    assert "damaged" not in again.program.stderr


async def test_a_replica_whose_token_is_wrong_is_down_and_told(
    start_cloud: StartCloud, start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    good, wrong = tmp_path / "good", tmp_path / "wrong"
    good.write_text("secret")
    wrong.write_text("guess")
    cloud = start_cloud("--auth-token-file", str(good))
    orchestrator = start_orchestrator("--cloud", cloud.address, "--cloud-auth-token-file", wrong)
    assert not orchestrator.is_up(cloud.address)
    assert "wrong token" in orchestrator.program.stderr


async def test_strangers_and_liars_break_nothing(cloud: Cloud, start_orchestrator: StartOrchestrator) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address)

    async def refused(call: Any, request: Message) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=10)
        return caught.value.code()

    async with grpc.aio.insecure_channel(orchestrator.address) as channel:
        stub: Any = orchestrator_v1_pb2_grpc.OrchestratorStub(channel)
        too_large = pb.ChoosePlanRequest(cloud_fingerprint="x" * 200_000)
        assert await refused(stub.ChoosePlan, too_large) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await refused(stub.ChoosePlan, pb.ChoosePlanRequest()) is grpc.StatusCode.INVALID_ARGUMENT
        for mode, outcome in (("evil", "done"), ("cloud", "evil"), ("x" * 10_000, "done")):
            report = pb.ReportSessionRequest(mode=mode, outcome=outcome, calibration=1.0)
            assert await refused(stub.ReportSession, report) is grpc.StatusCode.INVALID_ARGUMENT
        lie = pb.ReportSessionRequest(
            mode="cloud", outcome="done", calibration=1.0, replica=cloud.address, total_seconds=80_000,
            predicted_seconds=1e-3, cloud_step_seconds=80_000, rtt_seconds=80_000, latents_elements=1,
        )  # fmt: skip
        series = orchestrator.scrape().names()
        for index in range(200):
            lie.replica = cloud.address if index % 2 else f"replica-{index}:1"
            await stub.ReportSession(lie, timeout=10)
        raw = channel.unary_unary("/ecdiff.v1.Orchestrator/ChoosePlan")
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(b"\xff\xff\xff", timeout=10)
    scrape = orchestrator.scrape()
    assert scrape.names() == series
    assert scrape.label_values("ecdiff_fleet_replica_up", "replica") == {cloud.address}
    replica = (await orchestrator.replicas())[cloud.address]
    assert replica.calibration == 1.0
    assert replica.rtt_seconds is None
    # gRPC tells of bytes that are no message; nothing else went wrong.
    failures = [line for line in orchestrator.program.stderr.splitlines() if "Traceback" in line]
    assert all("DecodeError" in line for line in failures)


def test_status_shows_what_it_knows(
    cloud: Cloud, start_orchestrator: StartOrchestrator, programs: Programs, plans: Path
) -> None:
    (plans / "broken.json").write_text("{")
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    shown = programs.cold("orchestrator", "status", "--orchestrator", orchestrator.address).wait()
    assert shown.returncode == 0, shown.stderr
    for text in (cloud.address, "up", "tiny.json", "not used: "):
        assert text in shown.stdout
    absent = programs.cold("orchestrator", "status", "--orchestrator", "127.0.0.1:9").wait()
    assert (absent.returncode, absent.stderr) == (1, "error: no orchestrator answers at 127.0.0.1:9\n")


def test_health_is_told_under_both_names(start_orchestrator: StartOrchestrator) -> None:

    with grpc.insecure_channel(start_orchestrator().address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "ecdiff.v1.Orchestrator"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
