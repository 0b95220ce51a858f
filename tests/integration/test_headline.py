"""`bench.headline` in miniature: real services, one emulated link, the tiny pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.headline.__main__ import main
from harness.reference import CLOUD_MODEL, EDGE_MODEL

MODES = ["cloud", "edge", "split", "ecdiff", "adaptive", "adaptive, tolerance 0.2"]


def test_every_mode_is_measured_over_a_link(tmp_path: Path) -> None:
    arguments = [
        *("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(EDGE_MODEL), "--no-scorer", "--no-bars"),
        *("--num-prompts", "1", "--repeats", "2", "--steps", "6", "--tolerance", "0.2", "--links", "dsl"),
    ]

    # The bench sets the variable; the runner puts it back.
    run = CliRunner(env={"OMP_NUM_THREADS": "1"}).invoke(main, [*arguments, "--output", str(tmp_path)])

    assert run.exit_code == 0, f"{run.output}{run.exception!r}"
    results = json.loads((tmp_path / "headline.json").read_text())
    assert results["complete"]
    assert [each["variant"] for each in results["quality"]] == MODES
    calls = {each["variant"]: each["cloud_calls"]["value"] for each in results["quality"]}
    assert (calls["cloud"], calls["edge"]) == (6, 0)
    assert calls["adaptive, tolerance 0.2"] <= 2
    assert results["latents_between_links"]["largest_difference"] <= 1e-6
    for each in results["times"]:
        assert each["link"] == "dsl"
        assert sum(each["parts"].values()) == pytest.approx(sum(each["wall_seconds"]) / 2)
        # One way there and one back, at least.
        assert each["variant"] == "edge" or each["wall_p50"]["value"] > 0.04
    assert (tmp_path / "headline.png").stat().st_size > 10_000
