"""What a cloud is told of a picture to start from, and what its loss costs: nothing of the picture."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from liar_harness import Liar
from picture_harness import NUM_STEPS, REQUEST, SEED, SIZE, START_STEP, STRENGTH

from edge_client import EdgeClient
from edge_client.request import GenerationRequest
from harness.cloud import StartCloud
from harness.reference import EDGE_MODEL
from harness.scripted_cloud import Send, honest_opened
from harness.waiting import eventually, running
from orchestrator.plan import PlanOptions
from wire.messages import Open, PromptText, State

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_cloud_is_told_noisy_latents_and_nothing_else_of_the_picture(liar: Liar, photo: Path) -> None:
    told: list[Open] = []

    async def script(opening: Open, send: Send) -> None:
        told.append(opening)

    liar.script = script
    result = await liar.client.generate("a cat", mode="cloud", image=photo, **{**REQUEST, "height": 64, "width": 64})
    (opening,) = told
    start = opening.start
    assert isinstance(start, State)
    assert (start.step_index, start.latents.shape, dict(start.scheduler_state)) == (START_STEP, (1, 4, 8, 8), {})
    assert opening.conditioning == PromptText(prompt="a cat", negative_prompt="a dog")
    assert photo.name not in repr(opening)
    # Another seed, other noise: what is sent is no picture.
    await liar.client.generate("a cat", mode="cloud", image=photo, **{**REQUEST, "height": 64, "width": 64, "seed": 5})
    assert isinstance(told[1].start, State)
    noise_to_picture = (told[1].start.latents - start.latents).std() / start.latents.std()
    assert noise_to_picture > 0.5
    # That cloud said nothing, and the edge made the steps from the picture on.
    assert result.report["handoff"] == {"reason": "cloud_lost", "step": START_STEP}
    assert result.report["step_sources"] == "----eeeeee"


async def test_a_cloud_that_is_lost_at_once_costs_nothing_of_the_picture(liar: Liar, photo: Path) -> None:
    async def script(opening: Open, send: Send) -> None:
        await send(honest_opened(liar.description, opening, latents_shape=(1, 4, *(side // 8 for side in SIZE))))

    liar.script = script
    lost = await liar.client.generate("a cat", mode="split", image=photo, **REQUEST)
    alone = await liar.client.generate("a cat", mode="edge", image=photo, **REQUEST)
    assert lost.report["handoff"] == {"reason": "cloud_lost", "step": START_STEP}
    (line,) = lost.report["fallbacks"]
    assert "goes on from step 4 of 10" in line
    np.testing.assert_allclose(lost.latents, alone.latents, atol=1e-5)


async def test_a_multistep_solver_begins_at_the_start_and_that_is_no_restart(client: EdgeClient, photo: Path) -> None:
    result = await client.generate(
        "a cat", mode="split", image=photo, scheduler="dpmpp-2m", handoff_step=START_STEP + 2, **REQUEST
    )
    assert result.report["step_sources"] == "----CCeeee"
    assert result.report["fallbacks"] == []


async def test_a_picture_moves_to_another_cloud_from_its_start_or_its_newest_latents(
    start_cloud: StartCloud, client: EdgeClient, photo: Path
) -> None:
    options = PlanOptions(num_inference_steps=NUM_STEPS, strength=STRENGTH, handoff_step=9)
    request = GenerationRequest(prompt="a cat", mode="split", plan_options=options, image=photo, seed=SEED)
    unmoved = await client.run(request)
    for num_steps in (0, 2):
        first, second = start_cloud(), start_cloud()
        first.unet.hold_after(num_steps)
        seen: list[str] = []
        both = f"{first.address},{second.address}"
        async with EdgeClient(cloud=both, edge_model=str(EDGE_MODEL), silence_seconds=2.0) as mover:
            progress = mover.run(request, lambda snapshot, seen=seen: seen.append(snapshot.step_sources))
            async with running(progress) as generating:
                await eventually(lambda gate=first.unet: gate.holding, "the step that it dies at")
                await eventually(lambda seen=seen, made="----" + "C" * num_steps: made in seen, "those before it")
                first.program.signal(signal.SIGKILL)
                result = await generating
        report = result.report
        assert report["clouds"] == [first.address, second.address]
        assert report["step_sources"] == "----CCCCCe"
        assert f"goes on from step {START_STEP + num_steps} of {NUM_STEPS}" in report["fallbacks"][0]
        assert second.nfe()["cloud"] == 5 - num_steps
        np.testing.assert_allclose(result.latents, unmoved.latents, rtol=0, atol=1e-4)
