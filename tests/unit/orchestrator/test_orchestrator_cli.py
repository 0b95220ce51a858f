"""`orchestrator plan`."""

from __future__ import annotations

import json
import sys

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


@pytest.mark.parametrize(
    "arguments", [("plan", "--warmup-steps", "1"), ("plan", "--mode", "nearly"), ("plan", "--what")]
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
