"""`--image` and `--strength` over real gRPC: diffusers' image-to-image pipelines are met in every mode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from picture_harness import GUIDANCE, HANDOFF_STEP, NUM_STEPS, REQUEST, SEED, SIZE, START_STEP, STRENGTH
from PIL import Image

from bench.parity import BOUND, difference
from edge_client import EdgeClient
from harness.agent import Agent, StartCommand
from harness.cloud import RunEdge
from harness.programs import Finished
from harness.reference import EDGE_MODEL
from models.tiny.build import build

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return a family's tiny pair, large and small."""
    root = tmp_path_factory.mktemp("tiny")

    def made(name: str) -> tuple[Path, Path]:
        large, small = root / name / "large", root / name / "small"
        for folder in (large, small):
            if not folder.exists():
                build(name, folder, size=folder.name)
        return large, small

    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["sd", "sdxl"])
async def pair(request: pytest.FixtureRequest, folders) -> AsyncIterator[tuple[EdgeClient, tuple[Path, Path]]]:
    large, small = folders(request.param)
    async with EdgeClient(cloud_model=str(large), edge_model=str(small)) as client:
        yield client, (large, small)


def stock_steps(folder: Path, photo: Path, *, num_images: int = 1, taken_over: torch.Tensor | None = None) -> list[Any]:
    """Run diffusers' own image-to-image pipeline; return its latents after each step.

    `taken_over` stands in for its own where the handoff is.
    """
    from diffusers import AutoPipelineForImage2Image

    pipeline = AutoPipelineForImage2Image.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made: list[Any] = []

    def after(_: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        is_handoff = taken_over is not None and step == HANDOFF_STEP - START_STEP - 1
        latents = taken_over if is_handoff else tensors["latents"]
        made.append(latents.clone())
        return {"latents": latents}

    pipeline(
        ["a cat"] * num_images,
        image=[Image.open(photo)] * num_images,
        strength=STRENGTH,
        num_inference_steps=NUM_STEPS,
        guidance_scale=GUIDANCE,
        negative_prompt=["a dog"] * num_images,
        generator=[torch.Generator().manual_seed(SEED + index) for index in range(num_images)],
        output_type="latent",
        callback_on_step_end=after,
    )
    assert len(made) == NUM_STEPS - START_STEP
    return made


async def test_mode_cloud_equals_the_stock_pipeline_of_the_large_model(pair, photo: Path) -> None:
    client, (large, _) = pair
    result = await client.generate("a cat", mode="cloud", image=photo, num_images=2, **REQUEST)
    assert result.pixels.shape == (2, *SIZE, 3)
    assert difference(torch.from_numpy(result.latents), stock_steps(large, photo, num_images=2)[-1]) < BOUND
    report = result.report
    assert (report["start_step"], report["strength"], report["image"]) == (START_STEP, STRENGTH, str(photo))
    assert report["step_sources"] == "-" * START_STEP + "C" * (NUM_STEPS - START_STEP)
    assert report["nfe"]["cloud"] == NUM_STEPS - START_STEP
    assert report["seconds"]["encode_picture"] > 0
    assert report["fallbacks"] == []


async def test_mode_edge_equals_the_stock_pipeline_of_the_small_model(pair, photo: Path) -> None:
    client, (_, small) = pair
    result = await client.generate("a cat", mode="edge", image=photo, **REQUEST)
    assert difference(torch.from_numpy(result.latents), stock_steps(small, photo)[-1]) < BOUND
    assert result.report["step_sources"] == "----eeeeee"


async def test_a_handoff_equals_both_stock_pipelines_run_by_hand(pair, photo: Path) -> None:
    client, (large, small) = pair
    result = await client.generate("a cat", mode="split", image=photo, handoff_step=HANDOFF_STEP, **REQUEST)
    early = stock_steps(large, photo)
    theirs = stock_steps(small, photo, taken_over=early[HANDOFF_STEP - START_STEP - 1])[-1]
    assert difference(torch.from_numpy(result.latents), theirs) < BOUND
    assert difference(early[-1], theirs) > 10 * BOUND  # else the small model was never asked
    assert result.report["step_sources"] == "----CCCeee"
    assert result.report["handoff"] == {"reason": "plan", "step": HANDOFF_STEP}


async def test_the_warm_up_of_an_extrapolating_mode_counts_from_the_start(pair, photo: Path) -> None:
    client, _ = pair
    plan = {"warmup_steps": 2, "skip_interval": 1, "handoff_step": 9}
    result = await client.generate("a cat", mode="ecdiff", image=photo, **plan, **REQUEST)
    assert result.report["step_sources"] == "----CCxCxe"
    bounded = await client.generate(
        "a cat", mode="ecdiff", image=photo, warmup_steps=2, skip_interval=1, max_cloud_calls=2, **REQUEST
    )
    assert bounded.report["nfe"]["cloud"] == 2


async def test_adaptive_starts_from_a_picture_too(pair, photo: Path) -> None:
    client, _ = pair
    result = await client.generate("a cat", image=photo, handoff_step=8, corrections="final", **REQUEST)
    assert result.report["step_sources"][:6] == "----CC"
    assert result.report["corrections"]["steps"] == [9]
    assert result.report["shadow"]["disagreement"][0]["step"] == START_STEP


async def test_where_the_edge_leads_from_the_start_no_cloud_is_asked_and_the_user_is_told(pair, photo: Path) -> None:
    client, _ = pair
    request = {**REQUEST, "strength": 0.2}
    result = await client.generate("a cat", mode="ecdiff", image=photo, **request)
    assert result.report["step_sources"] == "--------ee"
    assert result.report["nfe"]["cloud"] == 0
    assert any("begin at step 8, where the edge leads by plan" in line for line in result.report["warnings"])


async def test_a_deadline_chooses_and_predicts_from_the_start_too(pair, photo: Path) -> None:
    client, _ = pair
    result = await client.generate("a cat", image=photo, deadline_ms=60_000, handoff_step=8, **REQUEST)
    assert result.report["step_sources"][:6] == "----CC"
    assert result.report["deadline"]["predicted_milliseconds"] > 0
    assert result.report["deadline"]["missed_by_milliseconds"] == 0


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def from_photo(run_edge: RunEdge, folders, photo: Path) -> Callable[..., Finished]:
    def run(*arguments: str | Path, image: Path = photo, model: Path | None = None) -> Finished:
        small = model or folders("sd")[1]
        words = ("--mode", "edge", "--edge-model", small, "--num-inference-steps", "4", "--quiet", "--no-agent")
        return run_edge("generate", "a cat", *words, "--image", image, *arguments)

    return run


async def test_size_is_the_pictures_or_what_is_asked_for(from_photo, tmp_path: Path) -> None:
    asked: dict[tuple[str, ...], tuple[int, int]] = {
        (): (88, 72),
        ("--height", "64"): (88, 64),
        ("--height", "64", "--width", "48"): (48, 64),
    }
    for arguments, size in asked.items():
        done = from_photo("--strength", "0.5", "-o", "out.png", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        with Image.open(tmp_path / "out.png") as made:
            assert made.size == size


async def test_what_cannot_be_a_start_is_one_plain_line(from_photo, run_edge: RunEdge, folders, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    damaged = tmp_path / "damaged.png"
    Image.effect_noise((64, 64), 9).convert("RGB").save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:600])
    narrow = tmp_path / "narrow.png"
    Image.new("RGB", (100, 5)).save(narrow)
    huge = tmp_path / "huge.png"
    Image.new("1", (2**14, 2**13)).save(huge)
    large = tmp_path / "large.png"
    Image.new("RGB", (3000, 16)).save(large)
    half = ("--strength", "0.5")
    for done, code, piece in (
        (from_photo(), 2, "--image and --strength go together"),
        (from_photo("--strength", "0"), 2, "strength must lie above 0 and at most at 1, not 0.0"),
        (from_photo("--strength", "1.01"), 2, "not 1.01"),
        (from_photo("--strength", "nan"), 2, "not nan"),
        (from_photo("--strength", "0.1"), 2, "strength 0.1 leaves none of 4 steps to run: at least 0.25 does"),
        (from_photo(*half, image=tmp_path / "missing.png"), 2, "missing.png"),
        (from_photo(*half, image=text), 1, "text.png is no picture that can be read: give a PNG or JPEG file"),
        (from_photo(*half, image=damaged), 1, "damaged.png is a damaged picture"),
        (from_photo(*half, image=narrow), 1, "narrow.png is 5 x 100 pixels"),
        (from_photo(*half, image=huge), 1, "huge.png has 16384 x 8192 pixels; at most"),
        (from_photo(*half, image=large), 1, "width must lie in 1..2048, not 3000: give --height and --width"),
        (from_photo(*half, model=folders("wan")[1]), 1, "small (wan) starts from no picture"),
        (from_photo(*half, model=folders("flux")[1]), 1, "small (flux) starts from no picture"),
        (
            run_edge("generate", "a cat", "--mode", "edge", "--edge-model", EDGE_MODEL, "--strength", "0.5"),
            2,
            "--image and --strength go together",
        ),
        (
            run_edge(
                *("generate", "a cat", "--mode", "split", "--edge-model", EDGE_MODEL, "--cloud", "127.0.0.1:1"),
                *("--image", large, "--strength", "0.2", "--steps", "30,20"),
            ),
            2,
            "handoff_step 30 lies before step 40, where strength 0.2 starts",
        ),
    ):
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert piece in line
        assert done.returncode == code
    assert not list(tmp_path.glob("out*"))


async def test_an_agent_is_sent_the_picture_itself(
    agent: Agent, start_command: StartCommand, photo: Path, tmp_path: Path
) -> None:
    words = ("--mode", "edge", "--image", photo, "--strength", "0.5", "--num-inference-steps", "4", "--seed", "3")
    for name, more in (("sent", ()), ("alone", ("--no-agent", "--edge-model", EDGE_MODEL))):
        outputs = ("-o", f"{name}.png", "--save-latents", f"{name}.npy", "--report", f"{name}.json", "--quiet")
        done = start_command(agent, "generate", "a cat", *words, *more, *outputs).wait()
        assert (done.returncode, done.stderr) == (0, "")
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("sent", "alone")]
    assert [report["agent"] for report in reports] == [agent.address, None]
    assert [report["image"] for report in reports] == [str(photo)] * 2
    sent, alone = (np.load(tmp_path / f"{name}.npy") for name in ("sent", "alone"))
    np.testing.assert_allclose(sent, alone, atol=1e-5)
