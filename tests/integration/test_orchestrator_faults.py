"""Edges whose orchestrator is away, hangs, is something else, or lets only some in."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fleet_edges import PROMPT, edge, make

from harness.cloud import Cloud, RunEdge, StartCloud
from harness.orchestrator import StartOrchestrator
from harness.reference import EDGE_MODEL
from harness.searched import STEPS
from wire.credentials import Credentials
from wire.errors import Unauthenticated
from wire.fleet_messages import PAPER

TLS = Path(__file__).parents[1] / "data" / "tls"


async def test_an_edge_with_a_cloud_decides_by_itself_and_says_so(cloud: Cloud) -> None:
    async with edge("127.0.0.1:9", cloud=cloud.address) as client:
        report = await make(client)
        assert report["plan"]["origin"] == PAPER
        line = "no orchestrator answers at 127.0.0.1:9: this edge decides by itself"
        assert report["warnings"].count(line) == 1
        # Nothing was to be asked: nothing to say.
        assert (await make(client, mode="split"))["warnings"] == []


def test_an_edge_without_a_cloud_ends_with_a_line_that_says_what_to_do(run_edge: RunEdge) -> None:
    done = run_edge("generate", PROMPT, "--orchestrator", "127.0.0.1:9", "--edge-model", EDGE_MODEL, "--no-agent")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no orchestrator answers at 127.0.0.1:9")
    assert "name a --cloud" in line


async def test_a_service_that_hangs_costs_a_second_once(cloud: Cloud, start_orchestrator: StartOrchestrator) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address)
    async with edge(orchestrator, cloud=cloud.address) as client:
        usual = (await make(client))["seconds"]["total"]
        orchestrator.program.signal(signal.SIGSTOP)
        report = await make(client)
        assert "this edge decides by itself" in " ".join(report["warnings"])
        assert report["seconds"]["connect"] < 2.0
        again = await make(client)
        assert "this edge decides by itself" in " ".join(again["warnings"])
        assert again["seconds"]["connect"] < 0.5
        assert again["seconds"]["total"] < usual + 5
        orchestrator.program.signal(signal.SIGCONT)


async def test_an_edge_that_knew_replicas_goes_on_with_them(
    cloud: Cloud, start_orchestrator: StartOrchestrator
) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address)
    async with edge(orchestrator) as client:
        await make(client, mode="cloud")
        orchestrator.program.kill()
        assert (await make(client, mode="cloud"))["fallbacks"] == []
        # Also where the link has to be made anew.
        await client._contact.forget()
        report = await make(client, mode="cloud")
        assert report["nfe"]["cloud"] == STEPS
        assert "using the cloud services that it named before" in report["warnings"][0]


async def test_something_else_at_the_address_is_no_orchestrator(cloud: Cloud) -> None:
    async with edge(cloud.address, cloud=cloud.address) as client:
        report = await make(client)
    assert "is no orchestrator" in report["warnings"][0]
    assert report["plan"]["origin"] == PAPER


async def test_a_wrong_token_is_an_error(cloud: Cloud, start_orchestrator: StartOrchestrator, tmp_path: Path) -> None:

    good, wrong = tmp_path / "good", tmp_path / "wrong"
    good.write_text("secret")
    wrong.write_text("guess")
    orchestrator = start_orchestrator("--cloud", cloud.address, "--auth-token-file", good)
    for file in (wrong, None):
        async with edge(orchestrator, credentials=Credentials(token_file=file)) as client:
            with pytest.raises(Unauthenticated, match=r"the orchestrator at .* refused the token"):
                await make(client)
    async with edge(orchestrator, credentials=Credentials(token_file=good)) as client:
        assert (await make(client))["fallbacks"] == []


async def test_tls_and_tokens_on_both_sides(
    start_cloud: StartCloud, start_orchestrator: StartOrchestrator, tmp_path: Path, run_edge: RunEdge
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    server = ("--tls-cert", str(TLS / "server.pem"), "--tls-key", str(TLS / "server.key"))
    secured = (*server, "--tls-client-ca", str(TLS / "ca.pem"), "--auth-token-file", str(token))
    client = ("--tls-ca", str(TLS / "ca.pem"), "--tls-cert", str(TLS / "client.pem"), "--tls-key",
              str(TLS / "client.key"), "--auth-token-file", str(token))  # fmt: skip
    cloud = start_cloud(*secured)
    towards_cloud = [f"--cloud-{each[2:]}" if each.startswith("--") else each for each in client]
    orchestrator = start_orchestrator("--cloud", cloud.address, *secured, *towards_cloud)
    assert orchestrator.is_up(cloud.address)
    done = run_edge("generate", PROMPT, "--orchestrator", orchestrator.address, "--edge-model", EDGE_MODEL,
                    "--no-agent", "--num-inference-steps", "4", "-o", "out.png", *client)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert orchestrator.scrape().value("ecdiff_fleet_generations_total", mode="adaptive", outcome="done") == 1
