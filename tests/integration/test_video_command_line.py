"""Videos by the command line: tiny pairs over real gRPC, into files that can be watched."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from harness.cloud import RunEdge
from models.tiny.build import build

SIZE = ("--height", 64, "--width", 96, "--num-frames", 9, "--num-inference-steps", 6)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """Return the options that name each family's tiny pair."""
    folder = tmp_path_factory.mktemp("pairs")
    named = {}
    for name in ("cogvideox", "cogvideox-1.5", "wan", "sd"):
        large, small = folder / name / "large", folder / name / "small"
        build(name, large, size="large")
        build(name, small, size="small")
        named[name] = ("--cloud-model", large, "--edge-model", small)
    return named


@pytest.mark.parametrize("name", ["cogvideox", "cogvideox-1.5", "wan"])
@pytest.mark.parametrize("mode", ["split", "ecdiff", "adaptive"])
def test_a_video_is_made_in_every_mode(run_edge: RunEdge, tmp_path: Path, pairs, name: str, mode: str) -> None:
    outputs = ("-o", "out.mp4", "--report", "run.json", "--quiet")
    steps = () if mode == "adaptive" else ("--handoff-step", 4)
    done = run_edge("generate", "a cat", *pairs[name], *SIZE, "--mode", mode, *steps, *outputs)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["images"] == ["out.mp4"]
    assert report["video"] == {"num_frames": 9, "fps": 16 if name == "wan" else 8}
    assert not report["fallbacks"]
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (len(frames), frames[0].shape) == (9, (64, 96, 3))


def test_formats_size_speed_and_latents_are_as_asked_for(run_edge: RunEdge, tmp_path: Path, pairs) -> None:
    outputs = ("-o", "out.gif", "--fps", 4, "--save-latents", "final.npy", "--report", "run.json", "--quiet")
    done = run_edge("generate", "a cat", *pairs["wan"], *SIZE, "--num-images", 2, "--mode", "ecdiff", *outputs)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(tmp_path / "final.npy").shape == (2, 4, 3, 8, 12)
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["images"] == ["out-0.gif", "out-1.gif"]
    assert report["video"]["fps"] == 4
    with Image.open(tmp_path / "out-1.gif") as animation:
        assert animation.info["duration"] == 250


def test_the_edge_alone_makes_an_animated_png(run_edge: RunEdge, tmp_path: Path, pairs) -> None:
    edge_model = pairs["cogvideox"][2:]
    done = run_edge("generate", "a cat", *edge_model, *SIZE, "--mode", "edge", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "out.png") as animation:
        assert (animation.format, animation.size) == ("PNG", (96, 64))
        assert animation.is_animated


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("cogvideox", ("--num-frames", 10), "multiple of 8 and one more for this model (9, 17, ...), not 10"),
        ("sd", ("--num-frames", 9), "num_frames is for video models; large makes pictures: leave it out"),
        ("sd", ("--fps", 8), "fps is for video models; large makes pictures: leave it out"),
    ],
)
def test_what_the_model_cannot_make_is_one_plain_line(run_edge: RunEdge, pairs, name, options, problem) -> None:
    done = run_edge("generate", "a cat", *pairs[name], *options, "--quiet")
    assert done.returncode == 1
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
