"""`python -m wire.health` against a real health server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wire.health import main

ROOT = Path(__file__).resolve().parents[3]
TLS = ROOT / "tests" / "data" / "tls"
ASK_WITH_TLS = ("--tls-ca", str(TLS / "ca.pem"))
CLIENT_CERTIFICATE = ("--tls-cert", str(TLS / "client.pem"), "--tls-key", str(TLS / "client.key"))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def server(status: int, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """A process that is `status`, and whose service `ecdiff.v1.CloudDenoiser` is SERVING."""
    servicer = health.HealthServicer()
    servicer.set("", status)
    servicer.set("ecdiff.v1.CloudDenoiser", SERVING)
    with ThreadPoolExecutor(max_workers=1) as threads:
        running = grpc.server(threads)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
        if credentials is None:
            port = running.add_insecure_port("127.0.0.1:0")
        else:
            port = running.add_secure_port("127.0.0.1:0", credentials)
        running.start()
        yield f"127.0.0.1:{port}"
        running.stop(None).wait()


def with_client_certificates() -> grpc.ServerCredentials:
    pair = ((TLS / "server.key").read_bytes(), (TLS / "server.pem").read_bytes())
    ca = (TLS / "ca.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)


def test_a_serving_service_is_healthy(capfd: pytest.CaptureFixture[str]) -> None:
    with server(SERVING) as address:
        assert main([address]) == 0
    assert capfd.readouterr() == ("", "")


def test_a_loading_service_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    with server(NOT_SERVING) as address:
        assert main([address]) == 1
        assert capfd.readouterr() == ("", f"error: the service at {address} is NOT_SERVING\n")
        assert main([address, "--service", "ecdiff.v1.CloudDenoiser"]) == 0


def test_a_service_that_is_not_there_is_one_plain_line(capfd: pytest.CaptureFixture[str]) -> None:
    with server(SERVING) as address:
        assert main([address, "--service", "ecdiff.v1.Nobody"]) == 1
    assert capfd.readouterr().err.startswith(f"error: ecdiff.v1.Nobody at {address} does not answer: NOT_FOUND")
    assert main([address]) == 1
    complaint = capfd.readouterr().err
    assert complaint.startswith(f"error: the service at {address} does not answer: UNAVAILABLE")
    assert complaint.count("\n") == 1


def test_an_answer_that_is_no_message_is_one_plain_line(capfd: pytest.CaptureFixture[str]) -> None:
    class Junk(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff\xff")

    with ThreadPoolExecutor(max_workers=1) as threads:
        running = grpc.server(threads)
        running.add_generic_rpc_handlers((Junk(),))
        address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
        running.start()
        assert main([address]) == 1
        running.stop(None).wait()
    complaint = f"error: the service at {address} speaks something else: the answer is no message of this schema"
    assert complaint in capfd.readouterr().err.splitlines()


def test_tls_with_a_client_certificate() -> None:
    with server(SERVING, with_client_certificates()) as address:
        assert main([address, *ASK_WITH_TLS, *CLIENT_CERTIFICATE]) == 0
        assert main([address, *ASK_WITH_TLS]) == 1
        assert main([address]) == 1


def test_a_file_that_is_not_there_is_named(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    assert main(["127.0.0.1:1", "--tls-ca", str(missing)]) == 1
    assert capfd.readouterr().err == f"error: [Errno 2] No such file or directory: '{missing}'\n"


def test_it_is_a_program_that_needs_no_torch() -> None:
    with server(SERVING) as address:
        asked = subprocess.run([sys.executable, "-m", "wire.health", address], cwd=ROOT, check=False)
    assert asked.returncode == 0
    listed = "import sys, wire.health; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", listed], cwd=ROOT, check=True, capture_output=True, text=True)
    assert set(loaded.stdout.split()).isdisjoint({"torch", "diffusers"})
