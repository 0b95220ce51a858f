"""Live previews by the command line, with and without an agent; and that nobody waits for them."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_client import EdgeClient
from edge_client.agent.updates import Updates
from edge_client.edge_model import EdgeModel
from edge_client.preview import LivePreview
from edge_client.preview_output import COLUMNS, PreviewFile, in_half_blocks
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.agent import Agent, StartCommand
from harness.cloud import Cloud, RunEdge
from harness.reference import EDGE_MODEL, LATENTS_SHAPE
from orchestrator.plan import PlanOptions

ASKED = ("a cat", "--num-inference-steps", 12, "-q")


def png(colour: str, size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


def test_the_preview_file_ends_as_the_picture(run_edge: RunEdge, cloud: Cloud, tmp_path: Path) -> None:
    models = ("--cloud", cloud.address, "--edge-model", EDGE_MODEL)
    done = run_edge("generate", *ASKED, *models, "--mode", "split", "--preview", "preview.png")
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "preview.png") as preview, Image.open(tmp_path / "out.png") as picture:
        assert np.array_equal(np.asarray(preview), np.asarray(picture))


def test_an_agent_makes_previews_too(agent: Agent, start_command: StartCommand, tmp_path: Path) -> None:
    done = start_command(agent, "generate", *map(str, ASKED), "--preview", "preview.png").wait()
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.size == (128, 128)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("mode", ["cloud", "edge", "ecdiff", "adaptive"])
async def test_previews_come_while_the_picture_is_made(cloud: Cloud, mode: str) -> None:
    snapshots: list[Snapshot] = []
    options = PlanOptions(num_inference_steps=24)
    request = GenerationRequest(prompt="a cat", mode=mode, plan_options=options, preview=True, seed=4)
    address = None if mode == "edge" else cloud.address
    async with EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), device="cpu") as client:
        await client.run(request, snapshots.append)  # the first one fits the colours, which may take as long
        snapshots.clear()
        result = await client.run(request, snapshots.append)
    previews = [Image.open(io.BytesIO(each.preview)) for each in snapshots if each.preview]
    assert previews
    assert all(preview.size == result.images[0].size for preview in previews)


@pytest.mark.asyncio(loop_scope="session")
async def test_nobody_waits_for_a_preview_and_the_newest_is_made() -> None:
    edge = await EdgeModel.load(str(EDGE_MODEL), device="cpu")
    shown: list[bytes] = []

    class Slow(LivePreview):
        def _next(self):
            time.sleep(0.05)
            return super()._next()

    from diffusion.scheduler_config import default_scheduler, parse_scheduler_config, scheduler_for
    from diffusion.schedulers import Stepper

    info = edge.model.info
    config = parse_scheduler_config(info.scheduler_config)
    name = default_scheduler(info.scheduler_class, config)
    schedule = Stepper(*scheduler_for(name, config, own_class=info.scheduler_class), 50).schedule
    preview = Slow(edge, lambda: schedule, size=(32, 32), show=shown.append, fail=pytest.fail)
    chance = np.random.default_rng(0)
    offered = [chance.standard_normal(LATENTS_SHAPE).astype(np.float32) for _ in range(50)]
    began = time.perf_counter()
    for step, latents in enumerate(offered):
        preview.offer(step, latents)
    assert time.perf_counter() - began < 0.05
    await asyncio.sleep(1)
    await preview.stop()
    edge.close()
    assert len(shown) <= 2


@pytest.mark.asyncio(loop_scope="session")
async def test_a_vae_that_makes_no_preview_costs_a_warning_and_no_picture(cloud: Cloud) -> None:
    async with EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL), device="cpu") as client:
        await client.load()
        assert client.edge is not None
        del client.edge.model.vae.network.encoder  # as in a file with a decoder only
        request = GenerationRequest(
            prompt="a cat", mode="split", plan_options=PlanOptions(num_inference_steps=12), preview=True
        )
        result = await client.run(request, lambda snapshot: None)
    (line,) = result.report["warnings"]
    assert line.startswith("there is no preview: ")
    assert len(result.images) == 1


def test_a_preview_that_waits_goes_with_the_newer_snapshot() -> None:
    updates = Updates()

    def snapshot(sources: str, preview: bytes = b"") -> Snapshot:
        return Snapshot(
            phase="cloud",
            num_inference_steps=3,
            step_sources=sources,
            rtt_seconds=0,
            bytes_received=0,
            bytes_sent=0,
            queue_position=0,
            preview=preview,
        )

    updates.progress(snapshot("C", b"png"))
    updates.progress(snapshot("CC"))
    updates.close()

    async def told() -> list[tuple[str, bytes]]:
        return [(update.progress.step_sources, update.progress.preview) async for update in updates]

    assert asyncio.run(told()) == [("CC", b"png")]


def test_a_terminal_shows_two_pixels_a_character() -> None:
    text = in_half_blocks(png("#ff0000", (80, 40)))
    lines = text.plain.rstrip("\n").split("\n")
    assert [len(line) for line in lines] == [COLUMNS] * 10
    assert str(text.spans[0].style) == "#ff0000 on #ff0000"


def test_the_file_is_whole_at_any_time(tmp_path: Path) -> None:
    preview = PreviewFile(tmp_path / "p.png")
    for colour in ("red", "green", "blue"):
        preview(png(colour))
    preview.finish(png("white"))
    with Image.open(tmp_path / "p.png") as preview:
        assert preview.getpixel((0, 0)) == (255, 255, 255)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("place", ["p.jpg", "", "screen"])
def test_another_place_is_bad_usage(run_edge: RunEdge, place: str) -> None:
    done = run_edge("generate", "a cat", "--preview", place)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
