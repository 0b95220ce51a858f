"""The recorded cases of CogVideoX, over real gRPC against a cloud service that the command line starts for itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.cloud import RunEdge
from harness.reference import COGVIDEOX_TINY, TOLERANCE, distance, read_cases

CASES = read_cases(COGVIDEOX_TINY)


@pytest.mark.parametrize("name", ["ecdiff", "split-40-10", "ecdiff-negative-prompt", "ecdiff-guidance-1", "cloud"])
def test_final_latents_and_step_sources_are_those_recorded(run_edge: RunEdge, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    models = ("--cloud-model", COGVIDEOX_TINY / "cloud", "--edge-model", COGVIDEOX_TINY / "edge")
    outputs = ("--save-latents", "final.npy", "--report", "run.json", "--quiet")
    done = run_edge("generate", *case.arguments, *models, "--device", "cpu", *outputs)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["step_sources"] == case.step_sources
    assert report["warnings"] == [
        "scheduler snr_shift_scale differs: cloud 1.0, edge 3.0; the cloud's is used for both"
    ]
    assert distance(np.load(tmp_path / "final.npy"), case.final_latents) < TOLERANCE
