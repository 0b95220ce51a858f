"""`orchestrator plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

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


def test_plan_takes_listed_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "plan", "--num-inference-steps", "8", "--handoff-step", "6", "--real-steps", "0,1,4")
    printed = json.loads(capsys.readouterr().out)
    assert printed["step_sources"] == "CCxxCxee"
    assert printed["cloud_calls"] == {"least": 3, "most": 3}


@pytest.mark.parametrize(
    "arguments",
    [
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
