from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.searched_plan import PlanFile, SearchedPlan, read_plan_file

HYBRID = SearchedPlan(
    real_steps=(0, 1, 4, 6),
    handoff_step=5,
    latest_handoff_step=8,
    correction_steps=(7,),
    predictor="linear",
    residual="reuse",
    fade=(1.0,) * 7 + (0.51235,),
    tail_error=(math.inf, math.inf, 0.3, 0.3, 0.3, 0.12, 0.12, 0.08, 0.07),
    cloud_calls=4,
    edge_steps=2,
    error=0.12,
    error_interval=(0.1, 0.14),
)
FILE = PlanFile(
    cloud_fingerprint="c",
    edge_fingerprint="e",
    scheduler="ddim",
    num_inference_steps=8,
    guidance_scale=2.0,
    prompts=("red apple, fluent style", "größer"),
    seeds=(3, 2**63),
    command="orchestrator search",
    disagreement=(0.5,) * 8,
    sensitivity=(0.1,) * 8,
    plans=(HYBRID,),
    default_tolerance=0.05,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    FILE.write(tmp_path / "plan.json")
    assert read_plan_file(tmp_path / "plan.json") == FILE
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_infinity_is_null_and_numbers_keep_five_digits(tmp_path: Path) -> None:
    replace(FILE, guidance_scale=2.0000001234).write(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert content["plans"][0]["tail_error"][:3] == [None, None, 0.3]
    assert content["guidance_scale"] == 2.0


def set_in(content: dict[str, Any], where: str, value: Any) -> None:
    *parents, name = where.split(".")
    for parent in parents:
        content = content[int(parent)] if isinstance(content, list) else content[parent]
    content[name] = value


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("format", "ecdiff-plans-0", "format"),
        ("surprise", 1, "surprise is unknown"),
        ("plans.0.surprise", 1, r"plans\[0\].surprise is unknown"),
        ("cloud_fingerprint", "", "cloud_fingerprint"),
        ("edge_fingerprint", None, "edge_fingerprint must be text"),
        ("num_inference_steps", 8.0, "num_inference_steps must be a whole number"),
        ("num_inference_steps", True, "num_inference_steps must be a whole number"),
        ("num_inference_steps", 0, "num_inference_steps"),
        ("num_inference_steps", 9, "disagreement"),
        ("guidance_scale", "2", "guidance_scale must be a number"),
        ("guidance_scale", -1, "guidance_scale"),
        ("guidance_scale", 10**400, "guidance_scale"),
        ("prompts", [], "seeds"),
        ("prompts", "red", "prompts must be a list"),
        ("seeds", [1], "seeds"),
        ("disagreement", [0.5] * 7, "disagreement"),
        ("disagreement", [0.5] * 7 + [None], r"disagreement\[7\]"),
        ("sensitivity", [-0.1] * 8, "sensitivity"),
        ("default_tolerance", -0.1, "default_tolerance"),
        ("plans", [], "plans"),
        ("plans", [3], r"plans\[0\] must be an object"),
        ("plans.0.real_steps", [0, 1, 6, 4], "real_steps"),
        ("plans.0.real_steps", [0, 2, 4, 6], "real_steps must begin"),
        ("plans.0.real_steps", [0, 1, 4, 8], "real_steps"),
        ("plans.0.correction_steps", [7, 7], "correction_steps"),
        ("plans.0.correction_steps", [8], "correction_steps"),
        ("plans.0.handoff_step", 9, "handoff_step"),
        ("plans.0.latest_handoff_step", 4, "latest_handoff_step"),
        ("plans.0.predictor", "magic", "predictor"),
        ("plans.0.residual", "magic", "residual"),
        ("plans.0.residual", "x0-linear", "residual must be one of"),
        ("plans.0.residual", 3, "residual"),
        ("plans.0.fade", [1.0], "fade"),
        ("plans.0.fade", [1.5] * 8, "fade"),
        ("plans.0.tail_error", [None], "tail_error"),
        ("plans.0.tail_error", [0.1] * 8, "plans"),
        ("plans.0.cloud_calls", 5, "cloud_calls must be 4"),
        ("plans.0.edge_steps", 3, "edge_steps must be 2"),
        ("plans.0.error", None, "error"),
        ("plans.0.error_interval", [0.1], "error_interval must have 2 values"),
    ],
)
def test_a_wrong_field_is_one_line_with_file_and_field(tmp_path: Path, where: str, value: Any, says: str) -> None:
    path = tmp_path / "plan.json"
    FILE.write(path)
    content = json.loads(path.read_text())
    set_in(content, where, value)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says) as caught:
        read_plan_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "\ud800", '{"format": NaN}', '{"format": "ecdiff-plans-1"}', "[" * 100_000]
)
def test_what_is_no_plan_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match="plan file"):
        read_plan_file(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_only_finite_numbers_are_read(tmp_path: Path, number: str) -> None:
    path = tmp_path / "plan.json"
    FILE.write(path)
    path.write_text(path.read_text().replace('"error": 0.12', f'"error": {number}'))
    with pytest.raises(ValueError, match="plan file"):
        read_plan_file(path)


def test_plans_stand_by_rising_cloud_calls() -> None:
    fewer = replace(HYBRID, real_steps=(0, 1, 6), cloud_calls=3)
    assert replace(FILE, plans=(fewer, HYBRID)).plans[0].cloud_calls == 3
    with pytest.raises(ValueError, match="rising"):
        replace(FILE, plans=(HYBRID, fewer))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"plan\.json"):
        FILE.write(tmp_path / "no" / "plan.json")
    assert not list(tmp_path.iterdir())
