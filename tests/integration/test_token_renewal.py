"""A token is changed while everything runs: no restart, no call refused on the way, and the old one ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.agent import StartAgent, StartCommand
from harness.cloud import StartCloud
from harness.orchestrator import StartOrchestrator
from harness.waiting import wait_until
from wire.credentials import Credentials
from wire.errors import Unauthenticated

pytestmark = pytest.mark.asyncio(loop_scope="session")


OLD, NEW, WRONG = "old-4e19", "new-b27c", "wrong-d803"


def token_file(path: Path, *tokens: str) -> Path:
    path.write_text("".join(f"{token}\n" for token in tokens))
    return path


async def test_services_agent_and_orchestrator_go_over_to_a_new_token(
    start_cloud: StartCloud,
    start_agent: StartAgent,
    start_orchestrator: StartOrchestrator,
    start_command: StartCommand,
    tmp_path: Path,
) -> None:
    served, held = token_file(tmp_path / "served", OLD), token_file(tmp_path / "held", OLD)
    cloud = start_cloud("--auth-token-file", str(served))
    watching = ("--cloud", cloud.address, "--cloud-auth-token-file", held)
    orchestrator = start_orchestrator(*watching, "--auth-token-file", served)
    asking = ("--cloud", cloud.address, "--orchestrator", orchestrator.address, "--auth-token-file", held)
    agent = start_agent(*asking)

    def refused() -> float:
        at_cloud = cloud.scrape().value("ecdiff_sessions_rejected_total", reason="token")
        return at_cloud + orchestrator.scrape().value("ecdiff_fleet_token_refusals_total")

    def makes_a_picture() -> None:
        steps = ("--num-inference-steps", "4", "--report", "report.json", "-q")
        done = start_command(agent, "generate", "a cat", *steps).wait()
        assert (done.returncode, done.stderr) == (0, ""), done

    async def accepts(token: str) -> bool:
        credentials = Credentials(token_file=token_file(tmp_path / "asked", token))
        try:
            await orchestrator.ask(lambda client: client.fleet_status(), credentials)
        except Unauthenticated:
            return False
        return True

    makes_a_picture()
    # First the services take both, then the clients send the new one, then the old one ends.
    token_file(served, NEW, OLD)
    makes_a_picture()
    assert await accepts(NEW)
    assert await accepts(OLD)
    token_file(held, NEW)
    makes_a_picture()
    token_file(served, NEW)
    makes_a_picture()
    assert refused() == 0
    assert orchestrator.is_up(cloud.address)
    assert not await accepts(OLD)
    assert refused() == 1
    # A file that is no good changes nothing, and says so once.
    token_file(served)
    makes_a_picture()
    assert await accepts(NEW)
    assert cloud.program.stderr.count("is used on") == 1
    assert "is empty" in cloud.program.stderr
    # Clients that have the wrong one are refused, and counted at both.
    token_file(held, WRONG)
    wait_until(lambda: not orchestrator.is_up(cloud.address), "the orchestrator to be refused")
    assert refused() > 1
    for each in (cloud, orchestrator, agent):
        said = each.program.stdout + each.program.stderr + each.scrape().text
        assert not any(secret in said for secret in (NEW, OLD, WRONG, "Bearer"))
