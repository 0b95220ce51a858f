"""A real cloud without a free place, and one that is shutting down."""

from __future__ import annotations

import signal

import pytest

from edge_client import EdgeClient
from edge_client.request import GenerationRequest
from harness.cloud import StartCloud
from harness.reference import EDGE_MODEL
from harness.waiting import eventually, running
from orchestrator.plan import PlanOptions

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS = 6


def a_request() -> GenerationRequest:
    return GenerationRequest(prompt="a cat", mode="cloud", plan_options=PlanOptions(num_inference_steps=STEPS))


def a_client(address: str) -> EdgeClient:
    return EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60)


async def test_full_cloud_costs_no_picture_and_harms_no_other(start_cloud: StartCloud) -> None:
    cloud = start_cloud("--max-sessions", "1")
    cloud.unet.hold_after(3)
    async with (
        a_client(cloud.address) as first,
        a_client(cloud.address) as second,
        running(first.run(a_request())) as holder,
    ):
        await eventually(lambda: cloud.unet.holding, "the first session to hold the only place")
        refused = (await second.run(a_request())).report
        # It asked again after the time that the cloud had named, for as long as that makes sense.
        assert cloud.scrape().value("ecdiff_sessions_rejected_total", reason="busy") >= 1
        cloud.unet.open()
        served = (await holder).report
    assert refused["handoff"] == {"reason": "cloud_full", "step": 0}
    assert refused["step_sources"] == "e" * STEPS
    assert refused["fallbacks"][0].startswith("cloud full (all 1 places are taken)")
    assert served["step_sources"] == "C" * STEPS
    assert served["fallbacks"] == []


async def test_draining_cloud_finishes_its_session_and_takes_no_new_one(start_cloud: StartCloud) -> None:
    cloud = start_cloud()
    async with a_client(cloud.address) as first, a_client(cloud.address) as second:
        # Past its first contact, so that it is Open which meets the closed door.
        assert (await second.run(a_request())).report["fallbacks"] == []
        cloud.unet.hold_after(3)
        async with running(first.run(a_request())) as holder:
            await eventually(lambda: cloud.unet.holding, "the first session to be under way")
            cloud.program.signal(signal.SIGTERM)
            await eventually(lambda: '"draining"' in cloud.program.stderr, "the drain to begin")
            refused = (await second.run(a_request())).report
            cloud.unet.open()
            served = (await holder).report
    assert refused["handoff"] == {"reason": "cloud_lost", "step": 0}
    assert refused["step_sources"] == "e" * STEPS
    assert served["step_sources"] == "C" * STEPS
    assert served["fallbacks"] == []
    await eventually(lambda: cloud.program.ended, "the cloud to end")
    assert cloud.program.wait().returncode == 0
