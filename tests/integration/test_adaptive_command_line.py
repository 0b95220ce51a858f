"""Mode adaptive from the command line: plans that do not fit, models that fail, Ctrl-C, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adaptive_harness import a_request, adaptive_pair, check_report, tiny_edge
from safetensors.torch import load_file, save_file

from harness.cloud import Cloud, RunEdge, StartCloud
from harness.model_variants import copy_model
from harness.programs import Finished, Programs
from harness.reference import EDGE_MODEL, SD_TINY
from harness.searched import STEPS, plan_file, searched
from harness.waiting import wait_until
from orchestrator.searched_plan import PlanFile
from wire.messages import Description

FAILED, INTERRUPTED = 1, 130
PLAN = searched((0, 1, 2, 4), 6, latest=8, correction_steps=(7, 10))


@pytest.fixture
def searched_file(description: Description) -> PlanFile:
    """A plan file that fits the tiny pair."""
    return plan_file(description, tiny_edge().info.fingerprint, PLAN, default_tolerance=0.4)


def generate(run_edge: RunEdge, cloud: Cloud, *arguments: str | Path) -> Finished:
    where = ("--cloud", cloud.address)
    if "--edge-model" not in arguments:
        where += ("--edge-model", str(EDGE_MODEL))
    return run_edge("generate", "a cat", "--num-inference-steps", str(STEPS), *where, *arguments)


def error_line(done: Finished) -> str:
    assert done.returncode == FAILED, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# ------------------------------------------------------------------------------ plan files


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cloud_fingerprint": "0" * 16}, "is for another cloud model: search one for this pair"),
        ({"edge_fingerprint": "0" * 16}, "is for another edge model: search one for this pair"),
        ({"scheduler": "dpmpp-2m"}, "is for scheduler dpmpp-2m, not ddim"),
    ],
    ids=["cloud", "edge", "scheduler"],
)
def test_plan_that_does_not_fit_is_refused(
    run_edge: RunEdge, cloud: Cloud, searched_file: PlanFile, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    replace(searched_file, **changes).write(tmp_path / "plans.json")
    line = error_line(generate(run_edge, cloud, "--plan", tmp_path / "plans.json"))
    assert words in line
    assert str(tmp_path / "plans.json") in line
    assert not (tmp_path / "out.png").exists()


def test_plan_for_another_number_of_steps_is_refused(
    run_edge: RunEdge, cloud: Cloud, searched_file: PlanFile, tmp_path: Path
) -> None:
    searched_file.write(tmp_path / "plans.json")
    line = error_line(generate(run_edge, cloud, "--plan", tmp_path / "plans.json", "--num-inference-steps", "20"))
    assert "is for 12 steps, not 20" in line


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", " is not JSON: "),
        ("{", " is not JSON: "),
        ('{"format": "ecdiff-plans-1"}', ": "),
        ("[1]", ": format must be"),
        ('{"format": "other"}', ": format must be"),
    ],
)
def test_broken_plan_file_is_refused(run_edge: RunEdge, cloud: Cloud, tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "plans.json").write_text(content)
    line = error_line(generate(run_edge, cloud, "--plan", tmp_path / "plans.json"))
    assert f"plan file {tmp_path / 'plans.json'}{why}" in line


def test_default_plan_that_does_not_fit_is_replaced_by_the_papers_in_one_line(
    run_edge: RunEdge, cloud: Cloud, tmp_path: Path
) -> None:
    done = generate(run_edge, cloud, "--report", "run.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run.json").read_text())
    check_report(report)
    assert report["plan"]["origin"] == "paper"
    (line,) = [line for line in report["fallbacks"] + report["warnings"] if "paper" in line]
    assert re.fullmatch(
        r"no searched plan for ddim with 12 steps: using the paper's parameters, scaled to 12 steps", line
    )
    (note,) = done.stderr.splitlines()
    assert note.startswith(f"note: {line} (request ")


# ------------------------------------------------------------------------------ models that fail


def test_edge_that_answers_nan_while_it_leads_ends_in_one_plain_line(
    run_edge: RunEdge, cloud: Cloud, tmp_path: Path
) -> None:
    broken = copy_model(EDGE_MODEL, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] = weights["conv_out.bias"] * float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    # The shadow meets it first, and goes on.
    done = generate(run_edge, cloud, "--edge-model", broken, "--handoff-step", "3", "--quiet")
    line = error_line(done)
    assert "the edge model has no finite answer at step 3: try another --dtype or --edge-model" in line
    assert not (tmp_path / "out.png").exists()


# ------------------------------------------------------------------------------ ends


def test_interrupt_while_the_edge_waits_for_a_correction_ends_it_at_once(
    programs: Programs, start_cloud: StartCloud, searched_file: PlanFile, tmp_path: Path
) -> None:
    cloud = start_cloud()
    cloud.unet.hold_after(4)
    searched_file.write(tmp_path / "plans.json")
    edge = programs.forked(
        *("edge_client", "generate", "a cat", "--cloud", cloud.address, "--edge-model", str(EDGE_MODEL)),
        *("--num-inference-steps", str(STEPS), "--plan", "plans.json", "--handoff-step", "6"),
        folder=tmp_path,
    )
    wait_until(lambda: cloud.unet.holding, "the cloud to be at the first correction")
    started = time.monotonic()
    edge.signal(signal.SIGINT)
    done = edge.wait()
    assert done.returncode == INTERRUPTED
    assert time.monotonic() - started < 3
    assert done.stderr.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*.png")) == []
    wait_until(cloud.is_empty, "the session to be freed")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("corrections", ["none", "planned"])
async def test_session_is_closed_and_nothing_is_left_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, corrections: str
) -> None:
    caplog.set_level(logging.INFO, "cloud_service")
    threads_before = set(threading.enumerate())
    async with adaptive_pair(tmp_path) as pair:
        plan = pair.write(PLAN)
        await pair.generate(a_request(plan, corrections=corrections, tolerance=0.4))
        tasks_before = asyncio.all_tasks()
        await pair.generate(a_request(plan, corrections=corrections, tolerance=0.4))
        # The second one's goodbye goes on behind its picture, on either side.
        async with asyncio.timeout(10):
            while pair.cloud.sample("ecdiff_cloud_sessions") or _ours(asyncio.all_tasks() - tasks_before):
                await asyncio.sleep(0.01)
    closed = [record for record in caplog.records if record.getMessage() == "session closed"]
    assert [vars(record)["outcome"] for record in closed] == ["HandedOff", "HandedOff"]
    left = [thread for thread in set(threading.enumerate()) - threads_before if "edge-device" in thread.name]
    for thread in left:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in left)


def _ours(tasks: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    return {task for task in tasks if "grpc" not in repr(task)}


# ------------------------------------------------------------------------------ the report


def test_report_has_every_documented_field(
    run_edge: RunEdge, cloud: Cloud, searched_file: PlanFile, tmp_path: Path
) -> None:
    searched_file.write(tmp_path / "plans.json")
    done = generate(
        run_edge, cloud, "--plan", "plans.json", "--report", "run.json", "--deadline-ms", "60000", "--quiet"
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "run.json").read_text())
    check_report(report)
    text = (SD_TINY.parents[2] / "docs" / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)[.`]", row.split("|")[1])}
    assert report.keys() <= documented
    assert {name for name in documented if not name.startswith("_")} - report.keys() <= set(report["seconds"]) | {
        "rtt_seconds"
    }
    assert set(report["plan"]) == {
        *(
            "origin",
            "why",
            "expected_error",
            "predicted_seconds",
            "refresh",
            "predictor",
            "real_steps",
            "latest_handoff_step",
        ),
        *("residual", "corrections", "correction_steps"),
    }
    assert report["plan"]["origin"] == "plans.json"
    assert report["plan"]["correction_steps"] == [7, 10]
    assert set(report["shadow"]) == {"disagreement", "skipped", "scale", "expected_error", "why"}
    assert set(report["corrections"]) == {"steps", "wait_seconds", "skipped"}
    assert set(report["deadline"]) == {"milliseconds", "predicted_milliseconds", "missed_by_milliseconds"}
    assert report["deadline"]["milliseconds"] == 60000
    # Measured at each real step that could be predicted: two are needed first.
    assert len(report["extrapolation_error"]) == report["nfe"]["cloud"] - 2
    assert report["handoff_seconds"].keys() >= {"edge_start", "total"}
    assert report["images"] == ["out.png"]
