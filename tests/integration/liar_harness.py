"""A client, and a cloud that sends it whatever a test puts in; and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_client import EdgeClient, GenerationResult
from edge_client.request import GenerationRequest
from harness.reference import LATENTS_SHAPE
from harness.scripted_cloud import Script, Send, honest_opened, some_latents
from orchestrator.plan import PlanOptions
from wire.messages import Description, Open, Source, Step

STEPS, GOOD_STEPS = 6, 2
LATENTS = [some_latents(LATENTS_SHAPE, seed) for seed in range(STEPS)]


@dataclass
class Liar:
    """A client, and the cloud that plays whatever script a test puts in."""

    client: EdgeClient
    description: Description
    script: Script

    async def play(self, opening: Open, send: Send) -> None:
        await self.script(opening, send)

    async def generate(self, script: Script, *, codec: str = "raw", **more: Any) -> GenerationResult:
        self.script = script
        options = PlanOptions(num_inference_steps=STEPS)
        request = GenerationRequest(prompt="a cat", mode="cloud", plan_options=options, latents_codec=codec, **more)
        return await self.client.run(request)

    async def open(self, opening: Open, send: Send) -> None:
        await send(honest_opened(self.description, opening, latents_shape=LATENTS_SHAPE))

    async def start_well(self, opening: Open, send: Send) -> None:
        """Be honest for the first steps."""
        await self.open(opening, send)
        for index in range(GOOD_STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))


def check_taken_over(result: GenerationResult, reason: str, step: int, *, discarded: int = 0) -> None:
    report = result.report
    assert report["handoff"] == {"reason": reason, "step": step}
    assert report["step_sources"] == "C" * step + "e" * (STEPS - step)
    assert report["nfe"]["cloud_discarded"] == discarded
    (line,) = report["fallbacks"]
    assert line.startswith(reason.replace("_", " "))
    assert "\n" not in line
    assert np.isfinite(result.latents).all()
    (image,) = result.images
    assert image.size == (128, 128)
