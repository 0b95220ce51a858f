"""The recorded cases, over real gRPC against a cloud service in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client import EdgeClient
from harness.cloud import Cloud
from harness.programs import Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL, TOLERANCE, Case, distance, read_cases

CASES = read_cases()


def cloud_share(report: dict[str, Any]) -> dict[str, int]:
    nfe = report["nfe"]
    return {"cloud": nfe["cloud"], "extrapolated": nfe["extrapolated"], "correction": nfe["corrections"]}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {source: after[source] - before[source] for source in before}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_final_latents_and_step_sources_are_those_recorded(client: EdgeClient, cloud: Cloud, case: Case) -> None:
    before = cloud.nfe()
    result = await client.generate(case.prompt, latents_codec="raw", **case.options)
    report = result.report
    assert report["step_sources"] == case.step_sources
    assert distance(result.latents, case.final_latents) < TOLERANCE
    assert grown(before, cloud.nfe()) == cloud_share(report)
    assert report["nfe"] == {
        "cloud": case.step_sources.count("C"),
        "cloud_discarded": 0,
        "extrapolated": case.step_sources.count("x"),
        "edge": case.step_sources.count("e"),
        "corrections": 0,
    }
    handoff_step = case.step_sources.find("e")
    if case.mode == "edge" or handoff_step < 0:
        assert report["handoff"] is None
    else:
        assert report["handoff"] == {"reason": "plan", "step": handoff_step}
    assert report["fallbacks"] == []
    assert report["warnings"] == []
    (image,) = result.images
    assert image.size == (128, 128)


@pytest.mark.parametrize("name", ["ecdiff", "split-40-10", "ecdiff-negative-prompt"])
def test_the_command_line_makes_the_same_numbers(programs: Programs, cloud: Cloud, tmp_path: Path, name: str) -> None:
    case, before = CASES[name], cloud.nfe()
    # One of them as a user starts it; the others spare themselves the imports.
    start = programs.cold if name == "ecdiff" else programs.forked
    edge = start("edge_client", "generate", *case.arguments, *files(tmp_path), "--cloud", cloud.address)
    assert edge.wait().returncode == 0, edge.stderr
    report = check_files(tmp_path, case)
    assert grown(before, cloud.nfe()) == cloud_share(report)


def test_the_command_line_starts_and_stops_a_cloud_of_its_own(programs: Programs, tmp_path: Path) -> None:
    case = CASES["ecdiff-25-steps"]
    arguments = [*case.arguments, *files(tmp_path), "--cloud-model", str(CLOUD_MODEL)]
    edge = programs.forked("edge_client", "generate", *arguments)
    assert edge.wait().returncode == 0, edge.stderr
    check_files(tmp_path, case)


def files(folder: Path) -> list[str]:
    return [
        *("--edge-model", str(EDGE_MODEL), "--latents-codec", "raw", "-o", str(folder / "out.png")),
        *("--save-latents", str(folder / "final.npy"), "--report", str(folder / "report.json")),
    ]


def check_files(folder: Path, case: Case) -> dict[str, Any]:
    """Check what a run of `case` wrote, and return its report."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["step_sources"] == case.step_sources
    assert report["images"] == [str(folder / "out.png")]
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    latents = np.load(folder / "final.npy")
    assert latents.dtype == np.float32
    assert distance(latents, case.final_latents) < TOLERANCE
    return report


@pytest.mark.asyncio(loop_scope="session")
async def test_zstd_changes_no_bit_and_int8_little(client: EdgeClient) -> None:
    case = CASES["ecdiff"]
    runs = {
        codec: await client.generate(case.prompt, latents_codec=codec, **case.options)
        for codec in ("raw", "zstd", "int8-block", "int8-delta")
    }
    latents = {codec: run.latents for codec, run in runs.items()}
    sizes = {codec: run.report["bytes"] for codec, run in runs.items()}
    assert np.array_equal(latents["zstd"], latents["raw"])
    for lossy in ("int8-block", "int8-delta"):
        assert 0 < distance(latents[lossy], latents["raw"]) < 0.1
    assert sizes["raw"]["latents_wire"] == sizes["raw"]["latents_raw"]
    assert sizes["zstd"]["latents_wire"] < sizes["zstd"]["latents_raw"]
    assert sizes["int8-block"]["latents_wire"] < 0.5 * sizes["int8-block"]["latents_raw"]
