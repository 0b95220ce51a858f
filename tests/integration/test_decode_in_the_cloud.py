"""The cloud decodes where that is asked for; whatever it does instead, there is a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from liar_harness import LATENTS, STEPS, Liar

from edge_client import EdgeClient
from edge_client.request import GenerationRequest
from harness.agent import Agent, StartCommand
from harness.cloud import RunEdge
from harness.reference import EDGE_MODEL, LATENTS_SHAPE
from harness.scripted_cloud import Receive, Send, conversing_cloud, honest_opened
from models.tiny.build import build
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.convert.pixels import encode_pixels
from wire.errors import EcdiffError, ModelError
from wire.messages import Decode, Decoded, Description, Finished, Open, Source, State, Step, Totals

SHAPE = (1, 128, 128, 3)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("mode", ["cloud", "split", "ecdiff", "adaptive"])
async def test_the_clouds_pixels_are_those_of_its_vae(client: EdgeClient, mode: str) -> None:
    # Without the handoff by agreement the latents are the same both times.
    more = {"shadow": False} if mode == "adaptive" else {}
    options = PlanOptions(num_inference_steps=8, **more)
    there, here = [
        await client.run(GenerationRequest(prompt="a cat", mode=mode, seed=3, plan_options=options, decode=decode))
        for decode in ("cloud", "edge")
    ]
    assert (there.report["decode"], here.report["decode"]) == ("cloud", "edge")
    assert there.report["fallbacks"] == []
    assert there.report["seconds"]["decode"] > 0
    assert np.array_equal(there.latents, here.latents)
    # The recorded pair's VAEs are the same.
    assert np.abs(there.pixels.astype(int) - here.pixels.astype(int)).max() <= 1


def test_videos_are_decoded_there_too(run_edge: RunEdge, tmp_path: Path) -> None:
    for size in ("large", "small"):
        build("wan", tmp_path / size, size=size)
    models = ("--cloud-model", tmp_path / "large", "--edge-model", tmp_path / "small")
    size = ("--height", 64, "--width", 96, "--num-frames", 9, "--num-inference-steps", 4, "--num-images", 2)
    for where in ("cloud", "edge"):
        done = run_edge(
            "generate", "a cat", *models, *size, "--mode", "split", "--decode", where, "-o", f"{where}.png", "-q",
            "--report", f"{where}.json",
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads((tmp_path / f"{where}.json").read_text())["decode"] == where


def test_an_agent_passes_it_on(agent: Agent, start_command: StartCommand, tmp_path: Path) -> None:
    words = ("a cat", "--num-inference-steps", "6", "--mode", "split", "--decode", "cloud", "--report", "r.json")
    done = start_command(agent, "generate", *words).wait()
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["decode"] == "cloud"


def test_mode_edge_has_no_cloud_that_could_decode(run_edge: RunEdge) -> None:
    done = run_edge("generate", "a cat", "--mode", "edge", "--decode", "cloud")
    assert (done.returncode, done.stderr) == (
        2,
        "error: mode edge uses no cloud that could decode: leave --decode out\n",
    )


# ------------------------------------------------------------------------------ clouds that fail at it

LIES = {
    "another-size": pb.Decoded(pixels=encode_pixels(np.zeros((1, 64, 64, 3), np.uint8))),
    "nothing": pb.Decoded(),
    "garbage": pb.Decoded(pixels=pb.Pixels(shape=SHAPE, data=b"\xff" * 100)),
    "endless-time": pb.Decoded(pixels=encode_pixels(np.zeros(SHAPE, np.uint8)), compute_seconds=float("inf")),
    "error": ModelError("the cloud model ran out of memory"),
    "end": None,
}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("answer", LIES.values(), ids=LIES)
async def test_a_cloud_that_fails_at_decoding_costs_no_picture(
    description: Description, answer: pb.Decoded | EcdiffError | None
) -> None:
    asked: list[Decode] = []

    async def script(opening: Open, send: Send, receive: Receive) -> None:
        await send(honest_opened(description, opening, latents_shape=LATENTS_SHAPE))
        for index in range(STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))
        await send(Finished(state=State(step_index=STEPS, latents=LATENTS[-1]), totals=Totals(nfe_cloud=STEPS)))
        message = await receive()
        assert isinstance(message, Decode)
        asked.append(message)
        if isinstance(answer, EcdiffError):
            raise answer
        if answer is not None:
            await send(pb.ServerMessage(decoded=answer))

    options = PlanOptions(num_inference_steps=STEPS)
    async with (
        conversing_cloud(description, script) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=20) as client,
    ):
        request = GenerationRequest(prompt="a cat", mode="cloud", plan_options=options, decode="cloud")
        result = await client.run(request)
    assert len(asked) == 1
    assert np.array_equal(asked[0].latents, LATENTS[-1])
    assert result.report["decode"] == "edge"
    (line,) = result.report["fallbacks"]
    assert line.startswith("the cloud did not decode (")
    assert "\n" not in line
    assert result.pixels.shape == SHAPE


@pytest.mark.asyncio(loop_scope="session")
async def test_pixels_that_nobody_asked_for_are_not_taken(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        await send(Decoded(pixels=np.zeros(SHAPE, np.uint8)))

    result = await liar.generate(script)
    assert result.report["handoff"]["reason"] == "cloud_error"
    assert np.isfinite(result.latents).all()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_cloud_that_was_lost_before_is_not_asked(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        raise ModelError("broken")

    result = await liar.generate(script, decode="cloud")
    assert result.report["decode"] == "edge"
    assert len(result.report["fallbacks"]) == 2
    assert result.report["fallbacks"][1].startswith("the cloud did not decode (")
