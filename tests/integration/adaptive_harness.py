"""Mode adaptive over real gRPC, with both models in the test's hands; and the same plan in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cloud_harness import Cloud, PacedModel, running_cloud, tiny_model

from bench.network import EmulatedNetwork, Link
from diffusion.loading import load_model
from diffusion.model import Model
from edge_client import EdgeClient, GenerationResult
from edge_client.cloud_link import CloudLink
from edge_client.decision import decide
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.reference import EDGE_MODEL
from harness.searched import STEPS, plan_file
from orchestrator.in_process import InProcessPair, Outcome
from orchestrator.plan import PlanOptions
from orchestrator.searched_plan import SearchedPlan
from wire.credentials import Credentials
from wire.messages import Description

PROMPT, SEED = "a cat", 5
# So that a busy machine is never taken for a lost cloud.
PATIENT_SECONDS = 60.0

AT_ONCE = Link()

_tiny_edge: list[Model] = []


def tiny_edge() -> Model:
    """The tiny edge model, loaded once."""
    if not _tiny_edge:
        _tiny_edge.append(load_model(EDGE_MODEL, device="cpu"))
    return _tiny_edge[0]


@dataclass(kw_only=True)
class AdaptivePair:
    """A cloud, an edge whose models a test can stop and spoil, and where its plans go."""

    cloud: Cloud
    edge: PacedModel
    client: EdgeClient
    network: EmulatedNetwork
    description: Description
    folder: Path
    snapshots: list[Snapshot] = field(default_factory=list)

    def write(self, *plans: SearchedPlan, **facts: Any) -> Path:
        """Write a plan file; see `harness.searched.plan_file`."""
        path = self.folder / "plans.json"
        plan_file(self.description, tiny_edge().info.fingerprint, *plans, **facts).write(path)
        return path

    async def generate(
        self, request: GenerationRequest, on_progress: Callable[[Snapshot], object] = lambda snapshot: None
    ) -> GenerationResult:
        """Generate, and hold what the progress display is told."""

        def note(snapshot: Snapshot) -> None:
            self.snapshots.append(snapshot)
            on_progress(snapshot)

        return await self.client.run(request, note)

    async def seen(self, num_steps: int) -> None:
        """Wait until so many steps have arrived at the edge."""
        async with asyncio.timeout(PATIENT_SECONDS):
            while not self.snapshots or len(self.snapshots[-1].step_sources) < num_steps:
                await asyncio.sleep(0.005)

    def in_one_process(self, request: GenerationRequest) -> Outcome:
        """Return what the same decision makes of both models without a network."""
        decision = decide(request, self.description.model, tiny_edge().info, None)
        both = InProcessPair(
            tiny_model(),
            tiny_edge(),
            [request.prompt] * request.num_images,
            [request.seed + index for index in range(request.num_images)],
            guidance_scale=request.guidance_scale,
            scheduler=request.scheduler,
        )
        return both.generate(decision.plan, decision.edge_plan)


def a_request(
    plan: Path | None,
    *,
    scheduler: str = "ddim",
    num_images: int = 1,
    guidance_scale: float = 1.0,
    **options: Any,
) -> GenerationRequest:
    """Return a request of mode adaptive; the options are those of `PlanOptions`. Without guidance it is quicker."""
    return GenerationRequest(
        prompt=PROMPT,
        plan_options=PlanOptions(**{"num_inference_steps": STEPS} | options),
        guidance_scale=guidance_scale,
        seed=SEED,
        scheduler=scheduler,
        num_images=num_images,
        latents_codec="raw",
        plan_file=plan,
    )


@contextlib.asynccontextmanager
async def adaptive_pair(
    folder: Path, *, link: Link = AT_ONCE, silence_seconds: float = PATIENT_SECONDS
) -> AsyncIterator[AdaptivePair]:
    """Run a cloud, and a client of it behind a link."""
    edge = PacedModel(tiny_edge())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_client.edge_model.load_model", lambda *args, **kwargs: edge)
        async with (
            running_cloud() as cloud,
            EmulatedNetwork(str(cloud.address), link) as network,
            EdgeClient(cloud=network.address, edge_model=str(EDGE_MODEL), silence_seconds=silence_seconds) as client,
        ):
            near = await CloudLink.connect((str(cloud.address),), Credentials(), wait_seconds=60)
            await near.close()
            try:
                yield AdaptivePair(
                    cloud=cloud,
                    edge=edge,
                    client=client,
                    network=network,
                    description=near.description,
                    folder=folder,
                )
            finally:
                edge.run_freely()


def check_report(report: dict[str, Any]) -> None:
    """What holds of every report (docs/report.md)."""
    nfe, corrections = report["nfe"], report["corrections"]
    sources = report["step_sources"]
    assert len(sources) == report["num_inference_steps"]
    assert nfe["edge"] == sources.count("e")
    assert nfe["extrapolated"] == sources.count("x")
    assert nfe["cloud"] - nfe["cloud_discarded"] == sources.count("C")
    edge_steps = [step for step, letter in enumerate(sources) if letter == "e"]
    assert edge_steps == list(range(report["handoff_step"], len(sources)))
    assert set(corrections["steps"]) <= set(edge_steps)
    assert corrections["steps"] == sorted(set(corrections["steps"]))
    assert len(corrections["wait_seconds"]) == len(corrections["steps"])
    assert all(seconds >= 0 for seconds in corrections["wait_seconds"])
    assert len(corrections["steps"]) <= nfe["corrections"]
    assert not {each["step"] for each in corrections["skipped"]} & set(corrections["steps"])
    assert {each["reason"] for each in corrections["skipped"]} <= {"deadline", "late", "cloud_lost", "max_cloud_calls"}
    handoff = report["handoff"]
    if handoff is not None:
        assert handoff["step"] == report["handoff_step"]
    elif "e" in sources:  # the cloud was asked nothing
        assert (sources.count("e"), nfe["cloud"], nfe["corrections"]) == (len(sources), 0, 0)
    shadow = report["shadow"]
    if shadow is not None:
        steps = [each["step"] for each in shadow["disagreement"]]
        assert steps == sorted(set(steps))
        assert len(steps) + shadow["skipped"] <= nfe["cloud"]
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    for line in (*report["fallbacks"], *report["warnings"]):
        assert "\n" not in line
