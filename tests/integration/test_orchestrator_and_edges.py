"""Edges with an orchestrator: replicas, plans, reports."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fleet_edges import PROMPT, edge, make

from edge_client import EdgeClient
from harness.agent import StartAgent, StartCommand
from harness.cloud import Cloud, RunEdge, StartCloud
from harness.orchestrator import Orchestrator, StartOrchestrator
from harness.reference import EDGE_MODEL
from harness.searched import STEPS
from harness.waiting import eventually, running
from wire.errors import IncompatibleModels, NotServing
from wire.fleet_messages import PAPER, SessionReport


async def test_an_edge_without_a_cloud_gets_its_replica_and_its_plan(
    cloud: Cloud, start_orchestrator: StartOrchestrator, plans: Path
) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    async with edge(orchestrator) as client:
        report = await make(client)
        assert client.link is not None
        assert client.link.address == cloud.address
        again = await make(client)
    assert report["plan"]["origin"] == f"tiny.json (chosen by the orchestrator at {orchestrator.address})"
    assert report["plan"]["real_steps"] == [0, 1, 3, 6]
    assert report["plan"]["expected_error"] == pytest.approx(4 / STEPS, abs=1e-4)
    assert report["warnings"] == again["warnings"] == []
    # A cold edge does not know its own step yet, and nobody has told of the link.
    assert report["plan"]["predicted_seconds"] is None
    assert again["plan"]["predicted_seconds"] > 0
    scrape = orchestrator.scrape()
    assert scrape.value("ecdiff_fleet_plans_total", origin="searched") == 2
    assert scrape.value("ecdiff_fleet_prediction_ratio_count") == 1


async def test_the_users_bounds_reach_the_service_and_hold(
    cloud: Cloud, start_orchestrator: StartOrchestrator, plans: Path
) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    async with edge(orchestrator) as client:
        report = await make(client, max_cloud_calls=3, shadow=False)
        assert report["nfe"]["cloud"] <= 3
        assert report["shadow"] is None
        exact = await make(client, handoff_step=5)
        assert exact["handoff"] == {"reason": "plan", "step": 5}
        in_time = await make(client, deadline_ms=60_000)
        assert in_time["deadline"]["predicted_milliseconds"] > 0
        for each in (report, exact, in_time):
            assert "chosen by the orchestrator" in each["plan"]["origin"]


async def test_what_needs_no_searched_plan_asks_for_none(
    cloud: Cloud, start_orchestrator: StartOrchestrator, plans: Path
) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    async with edge(orchestrator) as client:
        assert (await make(client, mode="split"))["plan"]["origin"] == "mode"
        assert (await make(client, warmup_steps=3))["plan"]["origin"] == "by hand"
        assert (await make(client, plan_file=plans / "tiny.json"))["plan"]["origin"] == "tiny.json"
    scrape = orchestrator.scrape()
    assert scrape.value("ecdiff_fleet_plans_total", origin="searched") == 0
    assert scrape.value("ecdiff_fleet_plans_total", origin="paper") == 0


async def test_plan_files_are_noticed_while_it_runs(
    cloud: Cloud, start_orchestrator: StartOrchestrator, plans: Path
) -> None:
    content = (plans / "tiny.json").read_text()
    (plans / "tiny.json").unlink()
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    async with edge(orchestrator) as client:
        report = await make(client)
        assert report["plan"]["origin"] == PAPER
        (plans / "broken.json").write_text(content[:-20])
        (plans / "new.json").write_text(content)
        assert (await make(client))["plan"]["origin"].startswith("new.json")
    told = [line for line in orchestrator.program.stderr.splitlines() if "broken.json" in line]
    assert len(told) == 1
    assert json.loads(told[0])["level"] == "warning"
    problems = {each.name: each.problem for each in (await orchestrator.status()).plan_files}
    assert problems["broken.json"]
    assert not problems["new.json"]


async def test_a_replica_that_dies_and_comes_back_is_noticed_and_nobody_is_sent_there_meanwhile(
    start_cloud: StartCloud, start_orchestrator: StartOrchestrator
) -> None:
    first, second = start_cloud(), start_cloud()
    orchestrator = start_orchestrator("--cloud", f"{first.address},{second.address}")
    assert all(each.is_up for each in (await orchestrator.replicas()).values())
    first.program.kill()
    await eventually(lambda: not orchestrator.is_up(first.address), "the loss of a replica to be noticed", 10)
    async with edge(orchestrator) as client:
        report = await make(client, mode="cloud")
        assert client.link is not None
        assert client.link.address == second.address
    assert (report["warnings"], report["fallbacks"]) == ([], [])
    start_cloud("--listen", first.address)
    await eventually(lambda: orchestrator.is_up(first.address), "its return to be noticed", 10)


async def test_a_replica_that_just_died_is_passed_over_by_the_edge(
    start_cloud: StartCloud, start_orchestrator: StartOrchestrator
) -> None:
    first, second = start_cloud(), start_cloud()
    orchestrator = start_orchestrator("--cloud", f"{first.address},{second.address}")
    async with edge(orchestrator) as client:
        await client.load()
        dead, survivor = await just_looked_at_and_first(orchestrator, first, second)
        dead.program.kill()
        report = await make(client, mode="cloud")
        assert client.link is not None
        assert client.link.address == survivor.address
    assert report["warnings"] == [f"{dead.address} does not serve; using the cloud at {survivor.address}"]
    assert report["nfe"]["cloud"] == STEPS


async def just_looked_at_and_first(orchestrator: Orchestrator, *clouds: Cloud) -> tuple[Cloud, ...]:
    """Return the clouds, the one in front that is named first next; when the orchestrator has just looked at it.

    It will not miss that one before its next look, which is 2 s away.
    """
    before = await orchestrator.replicas()
    first = (await orchestrator.ask(lambda caller: caller.list_replicas("")))[0].address
    # To be named costs it its place in front, until it tells its load again.
    while (await orchestrator.replicas())[first].wait_seconds > before[first].wait_seconds:
        await asyncio.sleep(0.01)
    return tuple(sorted(clouds, key=lambda each: each.address != first))


async def test_fleet_without_a_fitting_model_is_a_plain_error(
    cloud: Cloud, start_orchestrator: StartOrchestrator
) -> None:
    async with edge(start_orchestrator()) as client:
        with pytest.raises(NotServing, match="knows no cloud service"):
            await make(client)
    bundled = EdgeClient(orchestrator=start_orchestrator("--cloud", cloud.address).address)
    async with bundled as client:
        with pytest.raises(IncompatibleModels, match="none of the orchestrator's cloud services fits this edge"):
            await make(client)


async def test_a_one_shot_commands_timings_are_in_the_metrics_when_it_ends(
    cloud: Cloud, start_orchestrator: StartOrchestrator, run_edge: RunEdge, plans: Path
) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    done = run_edge(
        "generate", PROMPT, "--orchestrator", orchestrator.address, "--edge-model", EDGE_MODEL, "--no-agent",
        "--num-inference-steps", str(STEPS), "--guidance-scale", "2", "-o", "out.png", "--report", "run.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scrape = orchestrator.scrape()
    assert scrape.value("ecdiff_fleet_generations_total", mode="adaptive", outcome="done") == 1
    assert scrape.value("ecdiff_fleet_generation_seconds_count", mode="adaptive") == 1
    assert scrape.value("ecdiff_fleet_nfe_total", source="cloud") == 4
    assert scrape.value("ecdiff_fleet_nfe_total", source="edge") == 4
    assert scrape.value("ecdiff_fleet_handoff_seconds_count", stage="total") == 1
    assert scrape.value("ecdiff_fleet_replica_step_seconds", replica=cloud.address) > 0
    assert scrape.value("ecdiff_fleet_replica_rtt_seconds", replica=cloud.address) > 0
    assert scrape.value("ecdiff_build_info", component="orchestrator", version=(await orchestrator.status()).version)
    assert scrape.label_values("ecdiff_fleet_replica_up", "replica") == {cloud.address}


async def test_an_agent_gets_its_cloud_and_its_plans_there_and_reports_each_generation(
    cloud: Cloud,
    start_orchestrator: StartOrchestrator,
    start_agent: StartAgent,
    start_command: StartCommand,
    plans: Path,
    tmp_path: Path,
) -> None:
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    agent = start_agent("--orchestrator", orchestrator.address)
    words = ("--num-inference-steps", str(STEPS), "--guidance-scale", "2", "-o", "out.png", "--report", "run.json")
    done = start_command(agent, "generate", PROMPT, *words).wait()
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["agent"] == agent.address
    assert report["plan"]["origin"] == f"tiny.json (chosen by the orchestrator at {orchestrator.address})"

    def reported() -> bool:
        # The picture does not wait for it.
        return orchestrator.scrape().value("ecdiff_fleet_generations_total", mode="adaptive", outcome="done") == 1

    await eventually(reported, "the generation to be reported", 10)


async def test_how_a_generation_ends_is_told(start_cloud: StartCloud, start_orchestrator: StartOrchestrator) -> None:
    cloud = start_cloud()
    orchestrator = start_orchestrator("--cloud", cloud.address)
    async with edge(orchestrator) as client:
        await make(client, mode="edge")
        with pytest.raises(ValueError, match="adaptive"):
            await make(client, mode="split", tolerance=0.1)  # refused before it is one
        cloud.unet.hold_after(4)
        async with running(make(client, mode="cloud")) as generation:
            await eventually(lambda: cloud.unet.holding, "the cloud to be held")
            cloud.program.kill()
            assert (await generation)["handoff"]["reason"] == "cloud_lost"
    scrape = orchestrator.scrape()
    assert scrape.value("ecdiff_fleet_generations_total", mode="edge", outcome="done") == 1
    assert scrape.value("ecdiff_fleet_generations_total", mode="cloud", outcome="fallback") == 1


async def test_predictions_are_calibrated_by_what_was_measured(
    cloud: Cloud, start_orchestrator: StartOrchestrator, plans: Path, tmp_path: Path
) -> None:
    """Reports say that everything takes three times as long: an edge's next prediction is about that much longer."""
    orchestrator = start_orchestrator("--cloud", cloud.address, "--plans", plans)
    async with edge(orchestrator) as client:
        before = (await make(client, deadline_ms=60_000))["deadline"]["predicted_milliseconds"]
        slow = SessionReport(
            mode="adaptive", outcome="done", replica=cloud.address, total_seconds=3.0, predicted_seconds=1.0
        )
        for _ in range(8):
            await orchestrator.ask(lambda caller: caller.report_session(slow))
        after = (await make(client, deadline_ms=60_000))["deadline"]["predicted_milliseconds"]
        assert (await orchestrator.replicas())[cloud.address].calibration == pytest.approx(3.0)
    # The costs themselves are measured anew and wander on a busy machine.
    assert after > 1.5 * before
    assert orchestrator.scrape().value("ecdiff_fleet_prediction_ratio_count") >= 8
