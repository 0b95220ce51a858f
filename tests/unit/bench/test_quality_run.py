"""The bench from end to end, on the tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from bench.quality.__main__ import main
from bench.quality.cases import GROUPS
from diffusion.loading import load_model
from orchestrator.searched_plan import PlanFile, SearchedPlan

PAIR = Path(__file__).resolve().parents[2] / "data" / "sd-tiny"
STEPS = 6


def _plans(path: Path) -> None:
    """Write a file with one hybrid plan that nobody searched for."""
    cloud, edge = (load_model(str(PAIR / name)) for name in ("cloud", "edge"))
    tail_error = tuple(math.inf if step < 2 else 1.0 - 0.15 * step for step in range(STEPS + 1))
    plan = SearchedPlan(
        real_steps=(0, 1, 3),
        handoff_step=3,
        latest_handoff_step=4,
        correction_steps=(4,),
        predictor="linear",
        residual="linear",
        fade=(),
        tail_error=tail_error,
        cloud_calls=3,
        edge_steps=2,
        error=tail_error[3],
        error_interval=(0.5, 0.8),
    )
    PlanFile(
        cloud_fingerprint=cloud.info.fingerprint,
        edge_fingerprint=edge.info.fingerprint,
        scheduler="ddim",
        num_inference_steps=STEPS,
        guidance_scale=2.0,
        prompts=("a dog",),
        seeds=(0,),
        command="made up",
        disagreement=(1.0,) * STEPS,
        sensitivity=(0.1,) * STEPS,
        plans=(plan,),
        default_tolerance=1.0,
    ).write(path)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    _plans(tmp_path / "plans.json")
    return [
        *("--pair", str(PAIR), "--plans", str(tmp_path / "plans.json"), "--steps", str(STEPS)),
        *("--converged-steps", "7", "--num-prompts", "2", "--num-seeds", "2", "--search-prompts", "1"),
        *("--budgets", "3", "--batch-size", "3", "--no-scorer"),
        *("--folder", str(tmp_path / "kept"), "--output", str(tmp_path / "out")),
    ]


def test_every_group_is_run_and_published_and_the_next_run_takes_what_was_made(
    command: list[str], tmp_path: Path
) -> None:
    run = CliRunner().invoke(main, command)

    assert run.exit_code == 0, run.output
    results = json.loads((tmp_path / "out" / "quality.json").read_text())
    by_name = {line["name"]: line for line in results["methods"]}
    assert {line["group"] for line in results["methods"]} == set(GROUPS)
    assert by_name["all-cloud"]["fidelity"]["mean"] == 0.0
    assert by_name["all-cloud"]["cloud_calls"] == STEPS
    assert by_name["all-cloud, 7 steps"]["converged"]["mean"] == 0.0
    assert by_name["edge only"]["cloud_calls"] == 0
    assert by_name["ours 3, handoff 3"]["cloud_calls"] == 3
    assert by_name["ours 3, handoff 3"]["edge_steps"] == 2
    assert len(by_name["edge only"]["errors"]) == 4  # 2 prompts x 2 seeds
    assert "smaller than a published run" in run.output
    for name in ("quality.png", "quality_sheet.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 300

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    again = CliRunner().invoke(main, [*command, "--methods", "split,ecdiff"])
    assert again.exit_code == 0, again.output
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert "Hybrid SD split" in again.output
    assert "ours 3" not in again.output


def test_a_missing_plan_file_says_what_to_name(command: list[str], tmp_path: Path) -> None:
    run = CliRunner().invoke(main, [*command, "--plans", str(tmp_path / "none.json")])

    assert run.exit_code == 2
    assert "name a plan file with --plans, or methods that need none" in run.output
