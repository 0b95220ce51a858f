from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.decisions import Timing, main
from diffusion.measures import MEASURES
from diffusion.predictors import PREDICTORS
from orchestrator.refresh import REFRESH_POLICIES
from wire.edge_plan import CORRECTIONS


def _timing(p95_seconds: float) -> Timing:
    return Timing(
        kind="refresh decision",
        name="fixed",
        num_calls=100,
        median_seconds=1e-6,
        p95_seconds=p95_seconds,
        bar_seconds=50e-6,
    )


def test_one_slow_call_in_ten_breaks_the_bar() -> None:
    assert _timing(51e-6).broken
    assert not _timing(49e-6).broken


def test_every_policy_predictor_and_measure_is_timed(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["--rounds", "3", "--threads", "1", "--no-bars", "--output", str(tmp_path)])

    assert run.exit_code == 0, run.output
    text = (tmp_path / "decisions.json").read_text()
    assert (tmp_path / "decisions.png").stat().st_size > 0
    for name in (*REFRESH_POLICIES, *CORRECTIONS, *PREDICTORS, *MEASURES, "agreement"):
        assert name in text, name


def test_a_broken_bar_ends_with_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.decisions.MAX_DECISION_SECONDS", 0.0)

    run = CliRunner().invoke(main, ["--rounds", "3", "--threads", "1", "--output", str(tmp_path)])

    assert run.exit_code == 1
    assert "above the bar: refresh decision always" in run.output
