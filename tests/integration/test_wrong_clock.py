"""A cloud whose wall clock is wrong, and is set again and again: no duration lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cloud import Cloud, RunEdge
from harness.programs import Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.scrape import Scrape

# In an hour ahead, or behind, nothing of a generation of some seconds can hide.
CLOCKS = {"ahead": 3600.0, "behind": -3600.0}
STEP_SECONDS, STEP_EVERY = -7.0, 0.25


@pytest.fixture(scope="module", params=CLOCKS)
def wrong(request: pytest.FixtureRequest, programs: Programs) -> tuple[Cloud, float]:
    ahead = CLOCKS[request.param]
    words = [str(ahead), str(STEP_SECONDS), str(STEP_EVERY), "cloud_service", "serve", "--model", str(CLOUD_MODEL)]
    listen = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    return Cloud(programs.cold("harness.wrong_clock", *words, *listen)), ahead


def test_no_duration_lies_and_the_offset_is_told(wrong: tuple[Cloud, float], run_edge: RunEdge, tmp_path: Path) -> None:
    cloud, ahead = wrong
    words = ["--cloud", cloud.address, "--edge-model", str(EDGE_MODEL), "--mode", "split", "--steps", "30,10"]
    files = ["-o", "x.png", "--report", "run.json", "--metrics-file", "run.prom"]
    done = run_edge("generate", "a clock", *words, *files)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run.json").read_text())
    total, network = report["seconds"]["total"], report["network"]
    # Each of them happened within the generation, and loopback is quick.
    for name, seconds in {**report["seconds"], **report["handoff_seconds"]}.items():
        assert 0.0 <= seconds <= total, name
    for name in ("rtt_seconds", "latents_transit_seconds"):
        assert 0.0 <= network[name]["min"] <= network[name]["p95"] < min(1.0, total), name
    parts = ("cloud_queue", "cloud_compute", "network", "handoff", "edge_compute", "decode", "connect")
    assert sum(report["seconds"][part] for part in parts) == pytest.approx(total, rel=0.1, abs=0.05)
    # The offset is a fact, and known better than its published uncertainty says. Steps of the clock before the
    # process took its time stamp's origin are part of it.
    uncertainty = network["clock_offset_uncertainty_seconds"]
    assert 0.0 < uncertainty < 0.5
    num_steps = round((ahead - network["clock_offset_seconds"]) / -STEP_SECONDS)
    assert 0 <= num_steps <= 100
    offset = ahead + num_steps * STEP_SECONDS
    assert network["clock_offset_seconds"] == pytest.approx(offset, abs=uncertainty + 0.05)
    scrape = Scrape((tmp_path / "run.prom").read_text())
    assert scrape.value("ecdiff_clock_offset_seconds") == pytest.approx(network["clock_offset_seconds"], abs=1e-5)
    assert scrape.value("ecdiff_clock_offset_uncertainty_seconds") == pytest.approx(uncertainty, abs=1e-5)
    for series in ("ecdiff_network_rtt_seconds", "ecdiff_latents_transit_seconds", "ecdiff_handoff_seconds"):
        assert longest_bucket(scrape, series) <= 1.0, series


def test_the_clouds_own_durations_do_not_lie(wrong: tuple[Cloud, float]) -> None:
    cloud, _ = wrong
    scrape = cloud.scrape()
    for series in ("ecdiff_cloud_step_seconds", "ecdiff_cloud_queue_seconds", "ecdiff_codec_seconds"):
        assert longest_bucket(scrape, series) <= 1.0, series


def longest_bucket(scrape: Scrape, series: str) -> float:
    """Return the bucket below which every observation lies: infinity would be a lie on loopback."""
    return max(scrape.smallest_full_bucket(series).values())
