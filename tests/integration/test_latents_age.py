"""A narrow, long link: latents that are older than two round trips decide nothing, and the picture comes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptive_harness import AdaptivePair, a_request, adaptive_pair, check_report

from bench.network import LINKS
from diffusion.edge_lead import EdgeLead
from diffusion.model import Evaluation
from edge_client.shadow import Shadow
from harness.reference import TOLERANCE, distance
from harness.searched import STEPS, searched
from wire.clock import stamp_seconds
from wire.messages import Step

pytestmark = pytest.mark.asyncio(loop_scope="session")

# 5 Mbit/s, 150 ms there and back.
LINK = LINKS["mobile"]
TWO_ROUND_TRIPS_SECONDS = 4 * LINK.latency_seconds
# By default; what is borne on any link is less than two round trips of this one then.
SILENCE_SECONDS = 3.0
# The round trip that is measured is longer than the link's, on a busy machine by that much.
SLACK_SECONDS = 0.2
CLOUD_STEP_SECONDS = 0.02
BOUND = STEPS - 1
EVERY_STEP = searched(range(BOUND), 6, latest=BOUND)

Evaluate = Callable[[Sequence[Evaluation]], list[torch.Tensor]]


@pytest.fixture
def ages(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How old the latents were that the shadow looked at; both ends have one clock here."""
    seen: list[float] = []
    observe = Shadow._observe

    async def note_age(shadow: Shadow, lead: EdgeLead, step: Step) -> None:
        seen.append(stamp_seconds() - (step.sent_at - step.encode_seconds - step.wait_seconds))
        await observe(shadow, lead, step)

    monkeypatch.setattr(Shadow, "_observe", note_age)
    return seen


def closed_form(scale: float, seconds: float) -> Evaluate:
    """A model whose prediction is a multiple of the latents, after so long, on any machine."""

    def evaluate(evaluations: Sequence[Evaluation]) -> list[torch.Tensor]:
        time.sleep(seconds)
        return [scale * evaluation.latents for evaluation in evaluations]

    return evaluate


@contextlib.asynccontextmanager
async def far_pair(folder: Path) -> AsyncIterator[AdaptivePair]:
    """A cloud that makes a step in 20 ms and an edge at the other end of the link, that disagree."""
    async with adaptive_pair(folder, link=LINK, silence_seconds=SILENCE_SECONDS) as pair:
        pair.cloud.model.evaluate = closed_form(1.0, CLOUD_STEP_SECONDS)  # type: ignore[method-assign]
        pair.edge.evaluate = closed_form(0.5, 0.0)  # type: ignore[method-assign]
        yield pair


async def generate(folder: Path, *, pixels: int, tolerance: float, scale: float = 1.0) -> dict[str, Any]:
    async with far_pair(folder) as pair:
        request = a_request(pair.write(EVERY_STEP, scale=scale), tolerance=tolerance)
        report = (await pair.generate(dataclasses.replace(request, height=pixels, width=pixels))).report
    check_report(report)
    return report


async def test_latents_that_come_in_time_decide_as_in_one_process(tmp_path: Path, ages: list[float]) -> None:
    async with adaptive_pair(tmp_path, link=LINK, silence_seconds=SILENCE_SECONDS) as pair:
        request = a_request(pair.write(searched((0, 1, 2, 4, 6), 6, latest=8)), tolerance=0.7)
        result = await pair.generate(request)
        alone = pair.in_one_process(request)
    assert result.report["shadow"]["skipped"] == 0
    assert result.report["handoff"] == {"reason": "agreement", "step": alone.handoff_step}
    assert max(ages) < TWO_ROUND_TRIPS_SECONDS + SLACK_SECONDS
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE


async def test_latents_that_would_queue_on_the_link_are_thinned_out_until_they_come_in_time(
    tmp_path: Path, ages: list[float]
) -> None:
    # 75 KiB a real step take 120 ms on the link, far longer than the step: the eleventh would be a second old.
    report = await generate(tmp_path, pixels=320, tolerance=0.1, scale=10)
    assert report["handoff"] == {"reason": "plan", "step": BOUND}
    assert max(ages, default=0.0) < TWO_ROUND_TRIPS_SECONDS + SLACK_SECONDS
    measured = [each["step"] for each in report["shadow"]["disagreement"]]
    assert report["shadow"]["skipped"] == BOUND - len(measured) > 0
    assert report["fallbacks"] == [
        f"the edge or its link is too slow to shadow: {report['shadow']['skipped']} of {BOUND} steps were skipped"
    ]


async def test_latents_that_are_old_whenever_they_come_decide_nothing(tmp_path: Path, ages: list[float]) -> None:
    # 192 KiB a real step take longer than two round trips. At this tolerance the first one to be measured would decide.
    report = await generate(tmp_path, pixels=512, tolerance=5.0)
    assert report["handoff"] == {"reason": "plan", "step": BOUND}
    assert ages == []
    assert report["shadow"]["disagreement"] == []
    assert report["nfe"]["cloud_discarded"] == 0
