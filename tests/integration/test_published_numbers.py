"""What the cloud's /metrics, the edge's metrics file and the report say of one generation over a slow link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.network import EmulatedNetwork, Link
from edge_client import EdgeClient, GenerationResult
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, RunEdge, StartCloud
from harness.reference import EDGE_MODEL, LATENTS_SHAPE, TOLERANCE, distance, read_cases
from harness.scrape import Scrape, check_with_promtool
from harness.waiting import eventually, running
from orchestrator.plan import PlanOptions

LINK = Link(latency_ms=40, bandwidth_mbit_s=20)
LATENCY_SECONDS = LINK.latency_seconds
LATENTS_BYTES = 4 * LATENTS_SHAPE[1] * LATENTS_SHAPE[2] * LATENTS_SHAPE[3]
CASE = read_cases()["ecdiff"]
CLOUD_EVALUATIONS, EXTRAPOLATED = CASE.step_sources.count("C"), CASE.step_sources.count("x")
# An extrapolation error is measured at each real step that two others precede: a gradient needs two.
PREDICTABLE = CLOUD_EVALUATIONS - 2

CLOUD_SERIES = {
    "ecdiff_nfe_total",
    "ecdiff_cloud_sessions",
    "ecdiff_cloud_step_seconds_count",
    "ecdiff_cloud_queue_seconds_count",
    "ecdiff_cloud_batch_size_count",
    "ecdiff_extrapolation_error_count",
    "ecdiff_latents_bytes_total",
    "ecdiff_codec_seconds_count",
    "ecdiff_corrections_total",
    "ecdiff_sessions_rejected_total",
    "ecdiff_build_info",
}
EDGE_SERIES = {
    "ecdiff_network_rtt_seconds_count",
    "ecdiff_latents_transit_seconds_count",
    "ecdiff_clock_offset_seconds",
    "ecdiff_clock_offset_uncertainty_seconds",
    "ecdiff_handoff_seconds_count",
    "ecdiff_handoff_step_count",
    "ecdiff_handoffs_total",
    "ecdiff_nfe_total",
    "ecdiff_extrapolation_error_count",
    "ecdiff_latents_bytes_total",
    "ecdiff_codec_seconds_count",
    "ecdiff_generation_seconds_count",
    "ecdiff_generations_total",
    "ecdiff_build_info",
}


def mean(scrape: Scrape, name: str, **labels: str) -> float:
    return scrape.value(f"{name}_sum", **labels) / scrape.value(f"{name}_count", **labels)


@pytest.mark.asyncio(loop_scope="session")
async def test_cloud_metrics_show_a_generation_under_way_and_done(start_cloud: StartCloud) -> None:
    cloud = start_cloud()
    # CCCCCCCxx, and then held before the eighth evaluation.
    cloud.unet.hold_after(7)
    async with (
        EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client,
        running(client.generate(CASE.prompt, latents_codec="raw", **CASE.options)) as generation,
    ):
        await eventually(lambda: cloud.unet.holding, "the cloud to reach the eighth evaluation")
        during = cloud.scrape()
        assert cloud.nfe() == {"cloud": 7, "extrapolated": 2, "correction": 0}
        assert during.value("ecdiff_cloud_sessions") == 1
        assert during.value("ecdiff_cloud_step_seconds_count") == 7
        cloud.unet.open()
        await generation
        await eventually(cloud.is_empty, "the session to end")
    after = cloud.scrape()
    assert cloud.nfe() == {"cloud": CLOUD_EVALUATIONS, "extrapolated": EXTRAPOLATED, "correction": 0}
    assert after.value("ecdiff_cloud_step_seconds_count") == CLOUD_EVALUATIONS
    assert after.value("ecdiff_cloud_queue_seconds_count") == CLOUD_EVALUATIONS
    assert after.value("ecdiff_cloud_batch_size_count") == after.value("ecdiff_cloud_batch_size_sum")
    assert after.value("ecdiff_extrapolation_error_count") == PREDICTABLE
    assert 0 < mean(after, "ecdiff_extrapolation_error") < 1
    assert 0 < mean(after, "ecdiff_cloud_step_seconds") < 60
    raw = after.value("ecdiff_latents_bytes_total", direction="sent", codec="raw", kind="raw")
    assert raw > 0
    assert raw % LATENTS_BYTES == 0
    assert after.value("ecdiff_latents_bytes_total", direction="received", codec="raw", kind="raw") == LATENTS_BYTES
    assert after.names() >= CLOUD_SERIES
    check_with_promtool(after.text)


@pytest.mark.asyncio(loop_scope="session")
async def test_slow_link_shows_in_report_and_metrics_and_in_no_number_of_the_picture(
    cloud: Cloud, tmp_path: Path
) -> None:
    async with (
        EmulatedNetwork(cloud.address, LINK) as network,
        EdgeClient(cloud=network.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client,
    ):
        result = await client.generate(CASE.prompt, latents_codec="raw", **CASE.options)
        client.metrics.write(tmp_path / "edge.prom")
        assert network.down.num_bytes > result.report["bytes"]["received"] > LATENTS_BYTES
    assert distance(result.latents, CASE.final_latents) < TOLERANCE
    assert result.report["step_sources"] == CASE.step_sources
    check_report(result)
    check_edge_metrics(Scrape((tmp_path / "edge.prom").read_text()), result.report)


def check_report(result: GenerationResult) -> None:
    report = result.report
    network = report["network"]
    rtt = network["rtt_seconds"]
    assert 2 * LATENCY_SECONDS <= rtt["min"] <= rtt["p50"] <= rtt["p95"]
    # A busy machine adds to the round trip, never takes from it.
    assert rtt["min"] < 2 * LATENCY_SECONDS + 0.2
    # One machine has one clock.
    assert abs(network["clock_offset_seconds"]) <= network["clock_offset_uncertainty_seconds"]
    assert LATENCY_SECONDS <= network["clock_offset_uncertainty_seconds"] <= rtt["min"]
    stages = report["handoff_seconds"]
    assert set(stages) == {"cloud_encode", "transit", "edge_decode", "edge_start", "total"}
    assert stages["total"] == pytest.approx(sum(stages.values()) - stages["total"], abs=1e-5)
    assert stages["transit"] > 0.5 * LATENCY_SECONDS
    assert report["seconds"]["handoff"] == pytest.approx(stages["total"], abs=1e-5)
    assert report["seconds"]["network"] > LATENCY_SECONDS
    ages = network["latents_age_seconds"]
    assert ages["handoff"] == pytest.approx(stages["total"], abs=0.05)
    assert ages["agreement"] is None
    assert ages["correction"] is None
    assert len(report["extrapolation_error"]) == PREDICTABLE
    assert report["bytes"]["latents_wire"] == report["bytes"]["latents_raw"]


def check_edge_metrics(scrape: Scrape, report: dict[str, Any]) -> None:
    assert scrape.names() >= EDGE_SERIES
    assert scrape.label_values("ecdiff_network_rtt_seconds_count", "probe") == {"channel", "stream"}
    assert mean(scrape, "ecdiff_network_rtt_seconds", probe="channel") >= 2 * LATENCY_SECONDS
    assert mean(scrape, "ecdiff_network_rtt_seconds", probe="stream") >= 2 * LATENCY_SECONDS
    assert mean(scrape, "ecdiff_latents_transit_seconds") > 0.5 * LATENCY_SECONDS
    assert scrape.value("ecdiff_clock_offset_uncertainty_seconds") >= LATENCY_SECONDS
    for stage in ("cloud_encode", "transit", "edge_decode", "edge_start", "total"):
        seconds = scrape.value("ecdiff_handoff_seconds_sum", stage=stage)
        assert seconds == pytest.approx(report["handoff_seconds"][stage], abs=1e-5)
    assert scrape.value("ecdiff_handoff_step_sum") == CASE.plan["handoff_step"]
    assert scrape.value("ecdiff_handoffs_total", reason="plan") == 1
    assert scrape.value("ecdiff_handoffs_total", reason="cloud_lost") == 0
    for source in ("cloud", "extrapolated", "edge"):
        assert scrape.value("ecdiff_nfe_total", source=source) == report["nfe"][source]
    received = scrape.value("ecdiff_latents_bytes_total", direction="received", codec="raw", kind="wire")
    sent = scrape.value("ecdiff_latents_bytes_total", direction="sent", codec="raw", kind="wire")
    assert sent == LATENTS_BYTES
    assert sent + received == report["bytes"]["latents_wire"]
    assert scrape.value("ecdiff_generations_total", mode="ecdiff", outcome="done") == 1
    assert mean(scrape, "ecdiff_generation_seconds", mode="ecdiff") == pytest.approx(report["seconds"]["total"])
    check_with_promtool(scrape.text)


@pytest.mark.asyncio(loop_scope="session")
async def test_narrow_link_carries_only_the_latents_that_credit_allows(cloud: Cloud) -> None:
    steps, num_images = 12, 4
    # The latents of four pictures take 1.3 s on this link, far longer than the cloud's step.
    async with (
        EmulatedNetwork(cloud.address, Link(latency_ms=20, bandwidth_mbit_s=0.1)) as network,
        EdgeClient(cloud=network.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client,
    ):
        options = PlanOptions(num_inference_steps=steps)
        request = GenerationRequest(
            prompt="a cat", mode="cloud", plan_options=options, num_images=num_images, latents_codec="raw"
        )
        result = await client.run(request)
    report = result.report
    assert report["step_sources"] == "C" * steps
    assert report["fallbacks"] == []
    assert len(result.images) == num_images
    # Older latents are skipped, the last ones come all the same.
    assert report["bytes"]["latents_raw"] < steps * num_images * LATENTS_BYTES


def test_command_line_writes_metrics_and_report(run_edge: RunEdge, cloud: Cloud, tmp_path: Path) -> None:
    done = run_edge(
        *("generate", "a cat", "--mode", "ecdiff", "--num-inference-steps", "12", "--cloud", cloud.address),
        *("--edge-model", EDGE_MODEL, "--metrics-file", "run.prom", "--report", "run.json", "--num-images", "2"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {"out-0.png", "out-1.png", "run.prom", "run.json"}
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["images"] == ["out-0.png", "out-1.png"]
    scrape = Scrape((tmp_path / "run.prom").read_text())
    assert scrape.names() >= EDGE_SERIES
    assert scrape.value("ecdiff_handoff_step_sum") == report["handoff"]["step"]
    check_with_promtool(scrape.text)
