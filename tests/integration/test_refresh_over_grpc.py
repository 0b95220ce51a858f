"""Refresh policies in the cloud's loop: the same decisions as in one process, and what happens to bad numbers."""

from __future__ import annotations

import pytest
import torch
from cloud_harness import Stream, letters, open_channel, opening, running_cloud

from diffusion.loading import load_model
from diffusion.trajectory import StepResult
from edge_client import EdgeClient
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, RunEdge
from harness.reference import CLOUD_MODEL, EDGE_MODEL, TOLERANCE, distance
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions
from wire.errors import ModelError
from wire.messages import Close, Plan, State

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, HANDOFF_STEP = 24, 20
OPTIONS = {
    "embedded-error": {"tolerance": 0.005},
    "third-difference": {"tolerance": 0.02},
    "easycache": {"tolerance": 0.2},
    "growing": {},
    "listed": {"real_steps": (0, 1, 2, 6, 7, 13, 23)},
}


@pytest.fixture(scope="module")
def both() -> InProcessPair:
    models = load_model(CLOUD_MODEL, device="cpu"), load_model(EDGE_MODEL, device="cpu")
    return InProcessPair(*models, ["a cat"], [5], guidance_scale=2.0)


def a_request(refresh: str, **options: object) -> GenerationRequest:
    plan = PlanOptions(
        num_inference_steps=STEPS,
        handoff_step=HANDOFF_STEP,
        predictor="linear",
        refresh=refresh,
        **(OPTIONS[refresh] | options),
    )
    return GenerationRequest(
        prompt="a cat", mode="ecdiff", plan_options=plan, guidance_scale=2.0, seed=5, latents_codec="raw"
    )


@pytest.mark.parametrize("refresh", OPTIONS)
async def test_the_cloud_decides_as_one_process_does(client: EdgeClient, both: InProcessPair, refresh: str) -> None:
    request = a_request(refresh)
    results: list[StepResult] = []
    latents = both.generate(request.plan, on_step=results.append).latents
    result = await client.run(request)
    report = result.report
    sources = "".join("C" if step.evaluated else "x" for step in results[:HANDOFF_STEP])
    assert report["step_sources"] == sources + "e" * (STEPS - HANDOFF_STEP)
    assert set(sources) == {"C", "x"}
    assert report["nfe"]["cloud"] == sources.count("C")
    assert report["nfe"]["extrapolated"] == sources.count("x")
    assert distance(result.latents, latents.numpy()) < TOLERANCE
    # The error of what was not extrapolated stands in the report, for every real step that could have been.
    errors = [step.extrapolation_error for step in results if step.extrapolation_error is not None]
    assert len(errors) == sources.count("C") - 2
    assert report["extrapolation_error"] == pytest.approx(errors, abs=2e-4)
    assert report["fallbacks"] == []


async def test_a_budget_is_kept_and_the_handoff_step_too(client: EdgeClient) -> None:
    report = (await client.run(a_request("embedded-error", tolerance=0.0, max_cloud_calls=7))).report
    assert report["nfe"]["cloud"] == 7
    assert report["handoff"] == {"reason": "plan", "step": HANDOFF_STEP}


async def test_command_line_takes_policy_tolerance_and_budget(run_edge: RunEdge, cloud: Cloud) -> None:
    where = ("--cloud", cloud.address, "--edge-model", EDGE_MODEL, "--quiet")
    what = ("--refresh", "embedded-error", "--tolerance", "0.01", "--predictor", "x0-linear", "--max-cloud-calls", "9")
    assert run_edge("generate", "a cat", *where, "--num-inference-steps", "20", *what).returncode == 0


async def test_a_resumed_trajectory_warms_up_again() -> None:
    plan = Plan(
        num_inference_steps=20,
        handoff_step=18,
        refresh="embedded-error",
        warmup_steps=3,
        skip_interval=4,
        predictor="linear",
        tolerance=1e9,
        max_cloud_calls=4,
    )
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        start = State(step_index=8, latents=torch.randn(1, 4, 16, 16).numpy())
        await stream.send(opening(plan, start=start, stream_latents=False))
        _, steps, ending = await stream.receive_steps()
        assert letters(steps) == "CCCxxxxCxx"
        assert ending.totals.nfe_cloud == 4
        await stream.send(Close())
        await stream.ends_ok()


@pytest.mark.parametrize("refresh", ["embedded-error", "third-difference", "easycache"])
async def test_nan_from_the_model_ends_the_session_and_decides_nothing(refresh: str) -> None:
    plan = Plan(num_inference_steps=12, handoff_step=12, refresh=refresh, skip_interval=2, tolerance=1e9)
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        num_answers = 0

        def fourth_is_nan(predictions: list[torch.Tensor]) -> list[torch.Tensor]:
            nonlocal num_answers
            num_answers += 1
            return [prediction * float("nan") if num_answers == 4 else prediction for prediction in predictions]

        cloud.model.after = fourth_is_nan
        stream = Stream(stub)
        await stream.send(opening(plan))
        error = await stream.error()
        assert isinstance(error, ModelError)
        assert "is not finite" in str(error)
        assert cloud.model.num_begun == 4
