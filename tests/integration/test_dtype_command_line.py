"""`--dtype` over real gRPC, and weights that it is wrong for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from harness.cloud import RunEdge, StartCloud
from harness.model_variants import copy_model
from harness.reference import CLOUD_MODEL, EDGE_MODEL

STEPS = ("--num-inference-steps", "6", "--seed", "3", "--quiet")
PAIR = ("--cloud-model", CLOUD_MODEL, "--edge-model", EDGE_MODEL)


@pytest.fixture
def too_large_for_float16(tmp_path: Path) -> Path:
    """The tiny edge model with a weight beyond 65504, which float16 cannot hold, and another that undoes it."""
    folder = copy_model(EDGE_MODEL, tmp_path / "large-weights")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.weight"] = weights["conv_out.weight"] * 1e7
    weights["conv_norm_out.weight"] = weights["conv_norm_out.weight"] * 1e-7
    weights["conv_norm_out.bias"] = weights["conv_norm_out.bias"] * 1e-7
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.02), ("bfloat16", 0.1)])
def test_a_handoff_in_half_precision_is_near_that_in_float32(
    run_edge: RunEdge, tmp_path: Path, dtype: str, bound: float
) -> None:
    made = {}
    for name in ("float32", dtype):
        outputs = ("--save-latents", f"{name}.npy", "--report", f"{name}.json", "-o", f"{name}.png")
        done = run_edge("generate", "a cat", "--mode", "split", *PAIR, "--dtype", name, *STEPS, *outputs)
        assert (done.returncode, done.stderr) == (0, "")
        made[name] = np.load(tmp_path / f"{name}.npy")
        assert np.isfinite(made[name]).all()
        assert json.loads((tmp_path / f"{name}.json").read_text())["fallbacks"] == []
    difference = np.linalg.norm(made[dtype] - made["float32"]) / np.linalg.norm(made["float32"])
    assert 0 < difference < bound
    sizes = [json.loads((tmp_path / f"{name}.json").read_text())["bytes"]["latents_raw"] for name in made]
    assert sizes[1] * 2 == sizes[0]


def test_weights_that_a_precision_cannot_hold_are_one_plain_line(
    run_edge: RunEdge, too_large_for_float16: Path, tmp_path: Path
) -> None:
    edge = ("generate", "a cat", "--mode", "edge", "--edge-model", too_large_for_float16, *STEPS, "-o", "out.png")
    done = run_edge(*edge, "--dtype", "float16")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the edge model has no finite answer at step 0: try another --dtype")
    assert not (tmp_path / "out.png").exists()
    for dtype in ("bfloat16", "float32"):
        assert run_edge(*edge, "--dtype", dtype).returncode == 0


def test_a_cloud_whose_precision_cannot_hold_its_weights_costs_no_picture(
    run_edge: RunEdge, start_cloud: StartCloud, too_large_for_float16: Path, tmp_path: Path
) -> None:
    cloud = start_cloud("--dtype", "float16", model=too_large_for_float16)
    where = ("--cloud", cloud.address, "--edge-model", EDGE_MODEL, "--mode", "split")
    done = run_edge("generate", "a cat", *where, *STEPS, "-o", "out.png", "--report", "run.json")
    assert done.returncode == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["handoff"] == {"reason": "cloud_error", "step": 0}
    assert "the model's answer at step 0 is not finite" in report["fallbacks"][0]
