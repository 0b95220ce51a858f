"""A pair that cannot work is refused before a service is started and weights are read; what differs is told once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.cloud import RunEdge
from harness.reference import EDGE_MODEL
from models.tiny.build import build


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pairs of several families."""
    root = tmp_path_factory.mktemp("pairs")
    for family in ("sd", "sdxl", "sd3"):
        for size in ("large", "small"):
            build(family, root / family / size, size=size)
    return root


def changed(folder: Path, copy: Path, part: str, **changes: object) -> Path:
    """Copy a model with another configuration of a part."""
    shutil.copytree(folder, copy)
    path = copy / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.mark.parametrize(
    ("cloud", "edge", "options", "problem"),
    [
        ("sdxl/large", "sd/small", (), "do not share latents: model family is sdxl in the cloud, sd on the edge"),
        ("sd/large", "sd3/small", (), "do not share latents: model family is sd in the cloud, sd3 on the edge"),
        ("sd/large", "nowhere", (), "there is no model folder"),
    ],
)
def test_a_pair_that_cannot_work_is_one_line_and_starts_nothing(
    run_edge: RunEdge, folders: Path, cloud: str, edge: str, options: tuple[str, ...], problem: str
) -> None:
    models = ("--cloud-model", folders / cloud, "--edge-model", folders / edge)
    done = run_edge("generate", "a cat", *models, *options, "--mode", "split")
    assert done.returncode == 1
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "changes", "line"),
    [
        (
            "scheduler/scheduler_config.json",
            {"beta_end": 0.02},
            "scheduler beta_end differs: cloud 0.012, edge 0.02; the cloud's is used for both",
        ),
        (
            "vae/config.json",
            {"scaling_factor": 0.5},
            "VAE scaling factor differs: cloud 0.18215, edge 0.5; the edge decodes with its own",
        ),
    ],
)
def test_what_differs_is_a_warning_with_both_values_told_once_and_kept_in_the_report(
    run_edge: RunEdge, folders: Path, tmp_path: Path, part: str, changes: dict[str, object], line: str
) -> None:
    edge = changed(folders / "sd" / "small", tmp_path / "edge", part, **changes)
    models = ("--cloud-model", folders / "sd" / "large", "--edge-model", edge)
    outputs = ("--report", "r.json", "--num-inference-steps", 4, "--mode", "split")
    done = run_edge("generate", "a cat", *models, *outputs)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert line in report["warnings"]
    assert done.stderr.count(line) == 1


def test_another_prediction_type_is_converted_without_a_word(run_edge: RunEdge, folders: Path, tmp_path: Path) -> None:
    part = "scheduler/scheduler_config.json"
    edge = changed(folders / "sd" / "small", tmp_path / "edge", part, prediction_type="v_prediction")
    models = ("--cloud-model", folders / "sd" / "large", "--edge-model", edge)
    outputs = ("--report", "r.json", "--num-inference-steps", 4, "--mode", "split", "-q")
    done = run_edge("generate", "a cat", *models, *outputs)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "r.json").read_text())["warnings"] == []


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (("--scheduler", "dpm"), 1, "scheduler 'dpm' does not run this model"),
        (("--height", "130"), 1, "multiples of"),
        (("--num-frames", "9"), 1, "num_frames is for video models"),
        (("--scheduler", "magic"), 2, "unknown scheduler 'magic'; choose one of"),
    ],
)
def test_an_option_that_the_model_does_not_have_is_one_line(
    run_edge: RunEdge, options: tuple[str, ...], code: int, problem: str
) -> None:
    done = run_edge("generate", "a cat", "--mode", "edge", "--edge-model", EDGE_MODEL, *options)
    assert done.returncode == code
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
