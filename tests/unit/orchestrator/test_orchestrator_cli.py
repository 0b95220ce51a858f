"""The command line of `orchestrator`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from models import PLANS_DIR
from orchestrator.__main__ import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
    main()


def test_plan_prints_each_steps_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "plan", "--mode", "ecdiff", "--num-inference-steps", "20")
    printed = json.loads(capsys.readouterr().out)
    assert printed["step_sources"] == "CCCxxCxxCxxCxxCeeeee"
    assert printed["nfe"] == {"cloud": 7, "extrapolated": 8, "edge": 5}


def test_plan_says_which_steps_are_decided_at_run_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--num-inference-steps", "20", "--handoff-step", "20", "--refresh", "embedded-error"]
    run(monkeypatch, "plan", *arguments, "--tolerance", "0.01", "--final-steps", "2", "--max-cloud-calls", "9")
    printed = json.loads(capsys.readouterr().out)
    assert printed["step_sources"] == "CCC" + "?" * 15 + "CC"
    assert printed["nfe"] == {"cloud": 5, "extrapolated": 0, "edge": 0}
    assert printed["decided_at_run_time"] == 15
    assert printed["cloud_calls"] == {"least": 6, "most": 9}


def test_plan_counts_corrections_as_cloud_calls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "plan", "--mode", "adaptive", "--max-cloud-calls", "6")
    printed = json.loads(capsys.readouterr().out)
    num_corrections = len(printed["edge_plan"]["correction_steps"])
    assert num_corrections > 0
    calls = printed["nfe"]["cloud"] + num_corrections
    assert printed["cloud_calls"] == {"least": calls, "most": calls}
    assert printed["why"].startswith(f"{calls} cloud calls")


def test_plan_takes_listed_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "plan", "--num-inference-steps", "8", "--handoff-step", "6", "--real-steps", "0,1,4")
    printed = json.loads(capsys.readouterr().out)
    assert printed["step_sources"] == "CCxxCxee"
    assert printed["cloud_calls"] == {"least": 3, "most": 3}


def test_plan_takes_the_schedulers_own_searched_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "plan", "--scheduler", "dpmpp-2m", "--num-inference-steps", "20")
    assert json.loads(capsys.readouterr().out)["origin"] == "dpmpp-2m-20.json"


def test_plan_says_so_when_no_searched_plan_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "plan", "--scheduler", "unipc", "--num-inference-steps", "20")
    printed = json.loads(capsys.readouterr().out)
    assert printed["origin"] == "paper"
    assert printed["why"].startswith("no searched plan for unipc with 20 steps")
    assert printed["step_sources"] == "CCCxxCxxCxxCxxCeeeee"


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"{", "is not JSON: "), (b"\xff", "is not JSON: it is no text in UTF-8"), (b"[]", "format must be")],
)
def test_a_plan_file_that_is_none_is_one_plain_line(
    content: bytes,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "plan", "--plan", str(file))
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: plan file {file}")
    assert text in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--scheduler", "unipc", "--plan", str(PLANS_DIR / "ddim-50.json")),
        ("serve", "--listen", "nowhere"),
        ("status", "--orchestrator", "nowhere"),
        ("plan", "--real-steps", "0,x"),
        ("plan", "--refresh", "listed"),
        ("plan", "--warmup-steps", "1"),
        ("plan", "--mode", "nearly"),
        ("plan", "--what"),
    ],
)
def test_bad_usage_is_one_plain_line_and_exit_code_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    errors = capsys.readouterr().err
    assert caught.value.code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--version")
    assert version("ecdiff") in capsys.readouterr().out


def test_names_of_the_command_line_cost_no_numpy() -> None:
    code = "import sys, orchestrator.__main__, edge_client.cli; print({'numpy', 'grpc', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
