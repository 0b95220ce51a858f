"""The same plan over real gRPC and in one process: the same handoff, the same corrections, the same picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from adaptive_harness import (
    PROMPT,
    SEED,
    AdaptivePair,
    a_request,
    adaptive_pair,
    check_report,
    tiny_edge,
)
from cloud_harness import tiny_model

from diffusion.loading import load_model
from edge_client import EdgeClient, GenerationResult
from edge_client.cloud_link import CloudLink
from edge_client.decision import decide
from harness.cloud import StartCloud
from harness.model_variants import copy_model
from harness.reference import EDGE_MODEL, TOLERANCE, distance
from harness.searched import plan_file, searched
from orchestrator.in_process import InProcessPair, Outcome
from wire.credentials import Credentials

pytestmark = pytest.mark.asyncio(loop_scope="session")

GUIDANCE_SCALE = 2.0
REAL_STEPS = (0, 1, 2, 4, 6, 8, 10)
# What each is about: a plan, and the options that go with it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "planned": ({"handoff_step": 6, "correction_steps": (7, 10)}, {"handoff_step": 6}),
    "agreement": ({"handoff_step": 6, "latest": 11, "correction_steps": (8,)}, {"tolerance": 0.55}),
    "final": ({"handoff_step": 6}, {"handoff_step": 6, "corrections": "final"}),
    "disagreement": ({"handoff_step": 6}, {"handoff_step": 6, "corrections": "disagreement", "tolerance": 0.25}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AdaptivePair]:
    async with adaptive_pair(tmp_path_factory.mktemp("plans")) as pair:
        yield pair


async def check_case(pair: AdaptivePair, case: str, scheduler: str) -> tuple[Outcome, GenerationResult]:
    """Run it both ways, and compare every decision; return both results."""
    plan, options = CASES[case]
    path = pair.write(searched(REAL_STEPS, **plan), scheduler=scheduler)
    request = a_request(path, scheduler=scheduler, guidance_scale=GUIDANCE_SCALE, **options)
    alone = pair.in_one_process(request)
    result = await pair.generate(request)
    report = result.report
    check_report(report)
    assert report["fallbacks"] == []
    assert report["step_sources"] == "".join(source.letter for source in alone.sources)
    assert report["handoff"]["step"] == alone.handoff_step
    assert report["corrections"]["steps"] == alone.corrections
    assert report["corrections"]["skipped"] == []
    assert report["nfe"]["corrections"] == len(alone.corrections)
    measured = {each["step"]: each["q"] for each in report["shadow"]["disagreement"]}
    assert measured.keys() >= alone.disagreement.keys()
    for step, q in alone.disagreement.items():
        assert measured[step] == pytest.approx(sum(q) / len(q), rel=1e-3)
    return alone, result


# One scheduler a case by default: the wire is the same, and each pair of runs takes a second.
DEFAULT_RUN = {("planned", "dpmpp-2m"), ("agreement", "dpmpp-2m"), ("final", "ddim"), ("disagreement", "euler")}


@pytest.mark.parametrize(
    ("case", "scheduler"),
    [
        pytest.param(case, scheduler, marks=() if (case, scheduler) in DEFAULT_RUN else pytest.mark.slow)
        for case in CASES
        for scheduler in ("ddim", "euler", "dpmpp-2m")
    ],
)
async def test_service_and_one_process_make_the_same_picture(pair: AdaptivePair, case: str, scheduler: str) -> None:
    alone, result = await check_case(pair, case, scheduler)
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE
    assert result.report["handoff"]["reason"] == ("agreement" if case == "agreement" else "plan")
    assert bool(alone.corrections)


async def test_unipc_keeps_its_order_where_the_cloud_hands_off(pair: AdaptivePair) -> None:
    alone, result = await check_case(pair, "planned", "unipc")
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE


async def test_unipc_drops_an_order_for_a_step_where_the_edge_takes_over(pair: AdaptivePair) -> None:
    # What the edge has seen of the cloud's last step is not all that the solver remembers.
    alone, result = await check_case(pair, "agreement", "unipc")
    assert TOLERANCE < distance(result.latents, alone.latents.numpy()) < 0.1


async def test_edge_model_of_another_prediction_type_is_shadowed_and_corrected_in_the_schedulers_terms(
    pair: AdaptivePair, tmp_path: Path
) -> None:
    changes = {"scheduler/scheduler_config.json": {"prediction_type": "v_prediction"}}
    variant = load_model(copy_model(EDGE_MODEL, tmp_path / "v", changes), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_client.edge_model.load_model", lambda *args, **kwargs: variant)
        async with EdgeClient(cloud=str(pair.cloud.address), edge_model=str(tmp_path / "v")) as client:
            plan, options = CASES["disagreement"]
            request = a_request(pair.write(searched(REAL_STEPS, **plan)), guidance_scale=GUIDANCE_SCALE, **options)
            result = await client.run(request)
    check_report(result.report)
    decision = decide(request, pair.description.model, tiny_edge().info, None)
    both = InProcessPair(tiny_model(), variant, [PROMPT], [SEED], guidance_scale=GUIDANCE_SCALE)
    alone = both.generate(decision.plan, decision.edge_plan)
    assert result.report["corrections"]["steps"] == alone.corrections
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE


async def test_cloud_of_another_precision_shadows_and_corrects(start_cloud: StartCloud, tmp_path: Path) -> None:
    cloud = start_cloud("--dtype", "bfloat16")
    link = await CloudLink.connect((cloud.address,), Credentials(), wait_seconds=60)
    await link.close()
    plan, options = CASES["planned"]
    path = tmp_path / "plans.json"
    plan_file(link.description, tiny_edge().info.fingerprint, searched(REAL_STEPS, **plan)).write(path)
    async with EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL), dtype="float32") as client:
        report = (await client.run(a_request(path, **options))).report
    check_report(report)
    assert report["fallbacks"] == []
    assert report["corrections"]["steps"] == [7, 10]
    assert [each["step"] for each in report["shadow"]["disagreement"]] == [0, 1, 2, 4]
