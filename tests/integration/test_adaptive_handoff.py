"""Who leads until when, over real gRPC: agreement, the slow edge, the shadow's failures; the same on every network."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_harness import AdaptivePair, a_request, adaptive_pair, check_report

from bench.network import Link
from edge_client.request import GenerationRequest
from harness.reference import TOLERANCE, distance
from harness.searched import STEPS, searched
from harness.waiting import running
from orchestrator.windows import MAX_WAITING_STEPS
from wire.messages import Array

pytestmark = pytest.mark.asyncio(loop_scope="session")

REAL_STEPS = (0, 1, 2, 4, 6)
# Agreement once less than .7 of the error remains: before step 5, behind the real step 4.
PLAN = searched(REAL_STEPS, 6, latest=8, correction_steps=(9,))
AGREED_STEP = 5


async def generate(pair: AdaptivePair, request: GenerationRequest) -> tuple[dict[str, Any], Array]:
    result = await pair.generate(request)
    check_report(result.report)
    assert np.isfinite(result.latents).all()
    return result.report, result.latents


async def test_agreement_comes_at_the_same_step_on_a_slow_link_as_in_one_process(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path, link=Link(latency_ms=40)) as pair:
        request = a_request(pair.write(PLAN), tolerance=0.7)
        report, latents = await generate(pair, request)
        alone = pair.in_one_process(request)
    assert report["handoff"] == {"reason": "agreement", "step": AGREED_STEP}
    ages = report["network"]["latents_age_seconds"]
    # Half a round trip, less what a busy machine's clock probes are wrong by.
    assert min(ages["agreement"], ages["handoff"]) > 0.03
    assert ages["correction"] > 0.08
    assert alone.handoff_step == AGREED_STEP
    assert distance(latents, alone.latents.numpy()) < TOLERANCE


async def test_agreement_is_announced_before_the_cloud_evaluates_for_nothing(tmp_path: Path) -> None:
    def slowly(predictions: list[torch.Tensor]) -> list[torch.Tensor]:
        time.sleep(0.2)  # a large model takes its time, a small one far less
        return predictions

    async with adaptive_pair(tmp_path) as pair:
        pair.cloud.model.after = slowly
        report, _ = await generate(pair, a_request(pair.write(PLAN), tolerance=0.7))
    assert report["handoff"] == {"reason": "agreement", "step": AGREED_STEP}
    assert report["nfe"]["cloud_discarded"] == 0


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp-2m"])
async def test_agreement_comes_at_the_same_step_when_the_cloud_has_long_stopped(tmp_path: Path, scheduler: str) -> None:
    async with adaptive_pair(tmp_path) as pair:
        request = a_request(pair.write(PLAN, scheduler=scheduler), scheduler=scheduler, tolerance=0.7)
        pair.edge.pace()
        async with running(generate(pair, request)) as generation:
            await pair.seen(PLAN.latest_handoff_step)
            pair.edge.run_freely()
            report, latents = await generation
        alone = pair.in_one_process(request)
    assert report["handoff"] == {"reason": "agreement", "step": AGREED_STEP}
    assert report["nfe"]["cloud_discarded"] == 1
    assert report["nfe"]["cloud"] == len(REAL_STEPS)
    assert report["shadow"]["skipped"] == 0
    assert report["fallbacks"] == []
    assert distance(latents, alone.latents.numpy()) < TOLERANCE


async def test_edge_too_slow_to_shadow_skips_steps_and_says_so(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        latest = STEPS - 1
        request = a_request(pair.write(searched(range(latest), 6, latest=latest), scale=10), tolerance=0.1)
        pair.edge.pace()
        async with running(generate(pair, request)) as generation:
            await pair.seen(latest)
            pair.edge.run_freely()
            report, _ = await generation
    assert report["handoff"] == {"reason": "plan", "step": latest}
    measured = [each["step"] for each in report["shadow"]["disagreement"]]
    assert measured[-MAX_WAITING_STEPS:] == list(range(latest - MAX_WAITING_STEPS, latest))
    skipped = report["shadow"]["skipped"]
    assert skipped == latest - len(measured) > 0
    assert report["fallbacks"] == [
        f"the edge or its link is too slow to shadow: {skipped} of {latest} steps were skipped"
    ]


async def test_without_the_shadow_the_plan_hands_off_and_nothing_is_measured(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        request = a_request(pair.write(PLAN), tolerance=0.7, shadow=False)
        report, latents = await generate(pair, request)
        asked = pair.edge.num_begun
        alone = pair.in_one_process(request)
    assert report["handoff"] == {"reason": "plan", "step": PLAN.handoff_step}
    assert report["shadow"] is None
    assert report["corrections"]["steps"] == [9]
    assert asked == report["nfe"]["edge"]
    assert distance(latents, alone.latents.numpy()) < TOLERANCE


async def test_agreement_that_never_comes_hands_off_at_the_bound(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        report, _ = await generate(pair, a_request(pair.write(PLAN, scale=2), tolerance=0.0))
    assert report["handoff"] == {"reason": "plan", "step": PLAN.latest_handoff_step}
    assert report["shadow"]["scale"] == pytest.approx(2, rel=0.1)
    assert report["shadow"]["expected_error"] > 0.5
    assert report["nfe"]["cloud_discarded"] == 0


async def test_tolerance_that_always_triggers_hands_off_at_the_earliest_step_allowed(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        report, _ = await generate(pair, a_request(pair.write(PLAN), tolerance=5.0))
    assert report["handoff"] == {"reason": "agreement", "step": 2}


# ------------------------------------------------------------------------------ models that fail


def nan_at(*numbers: int) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """Return a hook that spoils these of a model's answers, counted from 1."""
    count = itertools.count(1)

    def spoil(predictions: list[torch.Tensor]) -> list[torch.Tensor]:
        return [each * math.nan for each in predictions] if next(count) in numbers else predictions

    return spoil


@pytest.mark.parametrize("bad", [(2,), (1, 2, 3, 4, 5)], ids=["once", "always"])
async def test_edge_that_answers_nan_while_shadowing_poisons_nothing(tmp_path: Path, bad: tuple[int, ...]) -> None:
    async with adaptive_pair(tmp_path) as pair:
        pair.edge.after = nan_at(*bad)
        report, _ = await generate(pair, a_request(pair.write(PLAN), tolerance=0.4))
    q = [each["q"] for each in report["shadow"]["disagreement"]]
    assert [number for number, value in enumerate(q, start=1) if value is None] == list(bad)
    # Without a measurement there is no agreement.
    assert report["handoff"]["step"] == (8 if len(bad) == 5 else 7)
    assert report["fallbacks"] == []


async def test_cloud_that_answers_nan_at_a_real_step_costs_no_picture(tmp_path: Path) -> None:
    async with adaptive_pair(tmp_path) as pair:
        pair.cloud.model.after = nan_at(4)
        report, _ = await generate(pair, a_request(pair.write(PLAN), tolerance=0.4))
    assert report["handoff"] == {"reason": "cloud_error", "step": 3}
    (line,) = report["fallbacks"]
    assert "the model's answer at step 4 is not finite" in line
    assert report["corrections"]["steps"] == []


async def test_cloud_that_answers_nan_to_a_correction_costs_no_picture(tmp_path: Path) -> None:
    plan = searched(REAL_STEPS, 6, correction_steps=(7, 9))
    async with adaptive_pair(tmp_path) as pair:
        request = a_request(pair.write(plan), handoff_step=6)
        pair.cloud.model.after = nan_at(5)
        report, _ = await generate(pair, request)
        pair.cloud.model.after = lambda predictions: predictions
        again, _ = await generate(pair, request)
    assert report["handoff"] == {"reason": "plan", "step": 6}
    assert report["corrections"]["steps"] == []
    assert report["corrections"]["skipped"] == [{"step": 7, "reason": "cloud_lost"}]
    (line,) = report["fallbacks"]
    assert "the model's answer at step 7 is not finite" in line
    assert again["corrections"]["steps"] == [7, 9]
