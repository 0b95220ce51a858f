"""Bounds on a generation of mode adaptive over real gRPC: cloud calls, explicit handoff steps, pictures, deadlines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from adaptive_harness import AdaptivePair, a_request, adaptive_pair, check_report

from bench.network import Link
from edge_client import GenerationResult
from edge_client.request import GenerationRequest
from harness.reference import TOLERANCE, distance
from harness.searched import STEPS, searched
from harness.waiting import running

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Agreement, residual, corrections: 5 calls before step 6, one more before step 8, two after it.
PLAN = searched((0, 1, 2, 3, 4, 6), 6, latest=8, correction_steps=(9, 11))
PLAN_CALLS = 7


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AdaptivePair]:
    async with adaptive_pair(tmp_path_factory.mktemp("plans")) as pair:
        yield pair


async def generate(pair: AdaptivePair, request: GenerationRequest) -> GenerationResult:
    result = await pair.generate(request)
    check_report(result.report)
    assert np.isfinite(result.latents).all()
    assert len(result.images) == request.num_images
    return result


# ------------------------------------------------------------------------------ cloud calls


@pytest.mark.parametrize(
    "bound", [0, 1, pytest.param(2, marks=pytest.mark.slow), 3, PLAN_CALLS, pytest.param(STEPS, marks=pytest.mark.slow)]
)
async def test_bound_on_calls_is_hard_with_a_searched_plan(pair: AdaptivePair, bound: int) -> None:
    # Above every tolerance, so that as much as possible is asked for.
    request = a_request(pair.write(PLAN, scale=2), tolerance=0.0, max_cloud_calls=bound)
    result = await generate(pair, request)
    nfe = result.report["nfe"]
    assert nfe["cloud"] + nfe["corrections"] <= bound
    assert nfe["cloud"] + nfe["corrections"] >= min(bound, PLAN_CALLS)
    assert result.report["fallbacks"] == []
    alone = pair.in_one_process(request)
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE
    assert result.report["corrections"]["steps"] == alone.corrections


@pytest.mark.parametrize("bound", [0, 1, pytest.param(2, marks=pytest.mark.slow), 6])
async def test_bound_on_calls_is_hard_with_the_papers_parameters(pair: AdaptivePair, bound: int) -> None:
    request = a_request(None, predictor="linear", corrections="disagreement", tolerance=0.0, max_cloud_calls=bound)
    result = await generate(pair, request)
    nfe = result.report["nfe"]
    # A tolerance of 0 asks before every step, as far as the bound goes.
    assert nfe["cloud"] + nfe["corrections"] == bound
    assert result.report["fallbacks"] == []


async def test_steps_that_the_cloud_made_before_it_heard_of_the_handoff_count(tmp_path: Path) -> None:
    plan = searched(range(9), 9, correction_steps=(3, 4, 5, 6, 7, 8, 9))
    async with adaptive_pair(tmp_path, link=Link(latency_ms=60)) as pair:
        request = a_request(pair.write(plan), tolerance=5.0, max_cloud_calls=10)
        result = await generate(pair, request)
    report = result.report
    assert report["handoff"]["reason"] == "agreement"
    assert report["nfe"]["cloud"] + report["nfe"]["corrections"] <= 10
    assert report["nfe"]["corrections"] > 0


# ------------------------------------------------------------------------------ explicit handoff steps


@pytest.mark.parametrize(
    ("how", "step"),
    [
        *(("searched", step) for step in (0, 1, 5, STEPS)),
        *(pytest.param("by hand", step, marks=() if step == 1 else pytest.mark.slow) for step in (0, 1, 5, 11, STEPS)),
    ],
)
async def test_explicit_handoff_step_is_exact(pair: AdaptivePair, how: str, step: int) -> None:
    if how == "searched":
        request = a_request(pair.write(PLAN), handoff_step=step, tolerance=5.0)
    else:
        request = a_request(None, handoff_step=step, predictor="linear")
    result = await generate(pair, request)
    report = result.report
    assert report["handoff_step"] == step
    assert report["handoff"] in ((None,) if step == STEPS else ({"reason": "plan", "step": step}, None))
    assert report["handoff"] is not None or step in (0, STEPS)
    assert report["step_sources"][step:] == "e" * (STEPS - step)
    assert report["fallbacks"] == []
    assert distance(result.latents, pair.in_one_process(request).latents.numpy()) < TOLERANCE


# ------------------------------------------------------------------------------ several pictures


@pytest.mark.parametrize("scheduler", ["ddim", pytest.param("dpmpp-2m", marks=pytest.mark.slow)])
async def test_several_pictures_share_every_decision(pair: AdaptivePair, scheduler: str) -> None:
    path = pair.write(PLAN, scheduler=scheduler)
    request = a_request(path, scheduler=scheduler, num_images=2, tolerance=0.7)
    result = await generate(pair, request)
    alone = pair.in_one_process(request)
    assert result.report["handoff"] == {"reason": "agreement", "step": alone.handoff_step}
    assert result.report["corrections"]["steps"] == alone.corrections == [9, 11]
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE


# ------------------------------------------------------------------------------ deadlines


async def test_generous_deadline_changes_nothing(pair: AdaptivePair) -> None:
    path = pair.write(PLAN)
    free = await generate(pair, a_request(path, tolerance=0.7))
    timed = await generate(pair, a_request(path, tolerance=0.7, deadline_ms=60_000))
    assert distance(timed.latents, free.latents) == 0
    for field in ("step_sources", "handoff", "fallbacks", "warnings"):
        assert timed.report[field] == free.report[field], field
    assert timed.report["corrections"]["steps"] == free.report["corrections"]["steps"]
    assert free.report["deadline"] is None
    assert timed.report["deadline"]["missed_by_milliseconds"] == 0
    assert timed.report["deadline"]["predicted_milliseconds"] > 0


async def test_cloud_that_stalls_is_left_in_time_for_the_deadline(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        path = pair.write(PLAN, scale=2)
        # Times are measured before the cloud stalls.
        await generate(pair, a_request(path, deadline_ms=60_000))
        pair.cloud.model.pace()
        pair.cloud.model.permit(3)
        result = await generate(pair, a_request(path, deadline_ms=2500))
    report = result.report
    assert report["handoff"] == {"reason": "deadline", "step": 3}
    assert report["step_sources"] == "CCC" + "e" * (STEPS - 3)
    assert report["corrections"]["steps"] == []
    assert {each["reason"] for each in report["corrections"]["skipped"]} <= {"late", "deadline"}
    # It used the time that it had, and not more than a busy machine adds.
    assert report["deadline"]["milliseconds"] == 2500
    taken = 1000 * (report["seconds"]["total"] - report["seconds"]["connect"])
    assert taken > 1000
    assert report["deadline"]["missed_by_milliseconds"] == pytest.approx(max(0.0, taken - 2500), abs=0.01)
    assert report["deadline"]["missed_by_milliseconds"] < 2000
    assert "the deadline leaves the cloud no more time: the edge goes on from step 3 of 12" in report["fallbacks"]


async def test_correction_that_comes_too_late_for_the_deadline_is_skipped_with_those_after_it(
    tmp_path: Path,
) -> None:
    async with adaptive_pair(tmp_path) as pair:
        path = pair.write(searched((0, 1, 2, 3, 4), 5, correction_steps=(6, 8, 10)))
        await generate(pair, a_request(path, handoff_step=5, deadline_ms=60_000))
        pair.cloud.model.pace()
        pair.cloud.model.permit(5)
        result = await generate(pair, a_request(path, handoff_step=5, deadline_ms=2500))
    report = result.report
    assert report["handoff"] == {"reason": "plan", "step": 5}
    assert report["corrections"]["steps"] == []
    skipped = report["corrections"]["skipped"]
    assert skipped[0] == {"step": 6, "reason": "late"}
    # By then there is just time enough, or just not.
    assert [each["step"] for each in skipped] == [6, 8, 10]
    assert report["deadline"]["missed_by_milliseconds"] < 2000


async def test_deadline_that_is_over_at_once_still_gives_a_picture(pair: AdaptivePair) -> None:
    request = a_request(pair.write(PLAN), deadline_ms=1)
    result = await generate(pair, request)
    report = result.report
    assert report["nfe"]["edge"] > 0
    missed = report["deadline"]["missed_by_milliseconds"]
    assert missed > 0
    assert f"the deadline was missed by {missed:.0f} ms" in report["fallbacks"]
    (line,) = [line for line in report["fallbacks"] + report["warnings"] if "no plan meets the deadline" in line]
    assert "is expected to miss it by" in line


async def test_deadline_moves_no_explicit_handoff_step_but_skips_corrections(pair: AdaptivePair) -> None:
    request = a_request(None, predictor="linear", handoff_step=5, corrections="final", deadline_ms=1)
    report = (await generate(pair, request)).report
    assert report["handoff"] == {"reason": "plan", "step": 5}
    assert report["corrections"] == {
        "steps": [],
        "wait_seconds": [],
        "skipped": [{"step": STEPS - 1, "reason": "deadline"}],
    }
    assert report["deadline"]["missed_by_milliseconds"] > 0


async def test_deadline_while_the_cloud_has_not_even_opened_the_session(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        path = pair.write(PLAN)
        await generate(pair, a_request(path, deadline_ms=60_000))
        pair.network.blackhole()
        async with running(generate(pair, a_request(path, deadline_ms=1500))) as generation:
            result = await generation
    report = result.report
    assert report["handoff"] == {"reason": "deadline", "step": 0}
    assert report["step_sources"] == "e" * STEPS
    assert report["fallbacks"][0].startswith("what the plans take cannot be measured (")
    assert report["fallbacks"][0].endswith("): chosen without the deadline")
