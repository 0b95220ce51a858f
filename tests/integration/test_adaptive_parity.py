"""The same plan over real gRPC and in one process: the same handoff, the same corrections, the same picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from adaptive_harness import AdaptivePair, a_request, adaptive_pair, check_report

from harness.reference import TOLERANCE, distance
from harness.searched import searched
from orchestrator.in_process import Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

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


async def check_case(pair: AdaptivePair, case: str, scheduler: str, num_images: int = 1) -> tuple[Outcome, Any]:
    """Run it both ways, and compare every decision; return both results."""
    plan, options = CASES[case]
    path = pair.write(searched(REAL_STEPS, **plan), scheduler=scheduler)
    request = a_request(path, scheduler=scheduler, num_images=num_images, **options)
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


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp-2m"])
@pytest.mark.parametrize("case", CASES)
async def test_service_and_one_process_make_the_same_picture(pair: AdaptivePair, case: str, scheduler: str) -> None:
    alone, result = await check_case(pair, case, scheduler)
    assert distance(result.latents, alone.latents.numpy()) < TOLERANCE
    assert result.report["handoff"]["reason"] == ("agreement" if case == "agreement" else "plan")
    assert bool(alone.corrections)
