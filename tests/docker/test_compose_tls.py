"""The same with deploy/compose.tls.yaml: certificates and a token by files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from harness.engine import DEPLOY, OURS, Stack, tell
from harness.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]
EXPIRY = "ecdiff_tls_certificate_expiry_timestamp_seconds"


def certificates(folder: Path, days: int) -> None:
    command = [DEPLOY / "certificates.sh", folder]
    subprocess.run(command, env=os.environ | {"DAYS": str(days)}, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "tls"
    certificates(folder, days=365)
    return folder


@pytest.fixture(scope="module")
def stack(client: docker.DockerClient, images: float, folder: Path) -> Iterator[Stack]:
    stack = Stack(client, "ecdiff-tls-test", ("compose.yaml", "compose.tls.yaml"), {"ECDIFF_TLS": str(folder)})
    with stack.running(*OURS) as seconds:
        tell(f"\nwith TLS all healthy {seconds:.1f} s after up: {stack.healthy_seconds}")
        yield stack
    assert stack.leftovers() == []


def test_a_picture_is_drawn_over_tls(stack: Stack) -> None:
    report = stack.generate("tls")
    assert report["fallbacks"] == []
    assert report["nfe"]["cloud"] > 0
    assert stack.scrape("orchestrator").value("ecdiff_fleet_replica_up", replica="cloud:50051") == 1


def test_who_has_no_token_gets_nothing(stack: Stack) -> None:
    command = ["edge-client", "probe", "--cloud", "cloud:50051"]
    code, output = stack.container("edge").exec_run([*command, "--tls-ca", "/run/secrets/ca.pem"])
    assert (code, b"token" in output) == (1, True), output
    code, output = stack.container("edge").exec_run([*command])
    assert code == 1, output


def test_a_renewed_certificate_is_served_without_a_restart(stack: Stack, folder: Path) -> None:
    before = {name: stack.scrape(name).value(EXPIRY) for name in ("cloud", "orchestrator")}
    certificates(folder, days=700)
    for name, end in before.items():
        wait_until(lambda name=name, end=end: stack.scrape(name).value(EXPIRY) > end, f"{name}'s new certificate")  # type: ignore[misc]
    assert stack.generate("renewed")["fallbacks"] == []
