"""`deploy/certificates.sh`: what it makes is enough for gRPC with certificates on both sides."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wire.health import main as ask_health

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def certificates(folder: Path, *names: str, **environment: str) -> None:
    command = [ROOT / "deploy" / "certificates.sh", folder, *names]
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)


def said_of(certificate: Path, *options: str) -> str:
    command = ["openssl", "x509", "-in", certificate, "-noout", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "tls"
    certificates(folder)
    return folder


def test_both_ends_accept_each_other(folder: Path) -> None:
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    ca = (folder / "ca.pem").read_bytes()
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    with ThreadPoolExecutor(max_workers=1) as threads:
        server = grpc.server(threads)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        credentials = grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        trusted = ["--tls-ca", str(folder / "ca.pem")]
        known = ["--tls-cert", str(folder / "client.pem"), "--tls-key", str(folder / "client.key")]
        assert ask_health([f"127.0.0.1:{port}", *trusted, *known]) == 0
        assert ask_health([f"localhost:{port}", *trusted, *known]) == 0
        assert ask_health([f"127.0.0.1:{port}", *trusted]) == 1
        server.stop(None).wait()


def test_the_folder_is_closed_to_others_and_the_authority_to_containers(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "server.key").stat().st_mode) == 0o644
    assert len((folder / "token").read_text().strip()) == 64


def test_the_certificate_is_for_the_names_that_were_asked_for(tmp_path: Path) -> None:
    certificates(tmp_path / "tls", "gpu.example.org", "192.0.2.7")
    said = said_of(tmp_path / "tls" / "server.pem", "-ext", "subjectAltName")
    assert "DNS:gpu.example.org, IP Address:192.0.2.7" in said


def test_a_second_run_renews_the_certificates_and_keeps_authority_and_token(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    certificates(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    certificates(folder, DAYS="30")
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in before if before[name] == after[name]} == {"ca.key", "ca.pem", "token"}
    month_seconds = 30 * 24 * 3600
    assert (
        subprocess.run(
            ["openssl", "verify", "-CAfile", folder / "ca.pem", folder / "server.pem"], check=False
        ).returncode
        == 0
    )
    for margin_seconds, ends_within in ((month_seconds - 600, 0), (month_seconds + 600, 1)):
        asked = ["openssl", "x509", "-in", folder / "server.pem", "-noout", "-checkend", str(margin_seconds)]
        assert subprocess.run(asked, check=False, capture_output=True).returncode == ends_within


def test_without_a_folder_it_says_how_it_is_used() -> None:
    asked = subprocess.run([ROOT / "deploy" / "certificates.sh"], check=False, capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stdout.startswith("Usage: deploy/certificates.sh FOLDER")
