"""Pairs whose models differ in what can be adapted: the picture comes, and the user hears of what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client import EdgeClient, GenerationResult
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, RunEdge
from harness.model_variants import copy_model, shift_weights, with_latent_channels
from harness.reference import EDGE_MODEL, TOLERANCE, ReferencePair, distance
from orchestrator.plan import PlanOptions
from wire.errors import IncompatibleModels

REQUEST = GenerationRequest(
    prompt="a cat",
    mode="ecdiff",
    plan_options=PlanOptions(num_inference_steps=12, handoff_step=8, warmup_steps=3, skip_interval=2, smoothing=0.3),
    seed=4,
)
SOURCES = "CCCxxCxx" + "eeee"


async def generate(cloud: Cloud, edge_model: Path) -> GenerationResult:
    async with EdgeClient(cloud=cloud.address, edge_model=str(edge_model), silence_seconds=60) as client:
        return await client.run(REQUEST)


@pytest.mark.asyncio(loop_scope="session")
async def test_edge_model_of_another_prediction_type_is_converted(cloud: Cloud, tmp_path: Path) -> None:
    changes = {"scheduler/scheduler_config.json": {"prediction_type": "v_prediction"}}
    variant = copy_model(EDGE_MODEL, tmp_path / "v", changes)
    result = await generate(cloud, variant)
    assert result.report["step_sources"] == SOURCES
    assert result.report["warnings"] == []
    assert result.report["fallbacks"] == []

    def reference(pair: ReferencePair) -> np.ndarray[Any, Any]:
        return pair.final_latents(SOURCES, prompt="a cat", guidance_scale=7.5, seed=4, plan=REQUEST.plan)

    assert distance(result.latents, reference(ReferencePair(edge=variant))) < TOLERANCE
    assert distance(result.latents, reference(ReferencePair())) > 0.01


DIFFERENCES: dict[str, tuple[dict[str, dict[str, Any]], list[str]]] = {
    "vae-scaling": (
        {"vae/config.json": {"scaling_factor": 0.25}},
        ["VAE scaling factor differs", "cloud 0.18215", "edge 0.25"],
    ),
    "scheduler": (
        {"scheduler/scheduler_config.json": {"beta_end": 0.02}},
        ["scheduler beta_end differs", "cloud 0.012", "edge 0.02"],
    ),
}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("changes", "pieces"), DIFFERENCES.values(), ids=DIFFERENCES)
async def test_difference_is_a_warning_with_both_values(
    cloud: Cloud, tmp_path: Path, changes: dict[str, dict[str, Any]], pieces: list[str]
) -> None:
    result = await generate(cloud, copy_model(EDGE_MODEL, tmp_path / "variant", changes))
    assert result.report["step_sources"] == SOURCES
    warnings = [line for line in result.report["warnings"] if pieces[0] in line]
    assert len(warnings) == 1
    for piece in pieces:
        assert piece in warnings[0]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("part", "stem", "word"),
    [
        ("text_encoder", "model", "text encoder (fingerprint) differs"),
        ("vae", "diffusion_pytorch_model", "VAE (fingerprint) differs"),
    ],
    ids=["text-encoder", "vae"],
)
async def test_other_weights_are_a_warning_with_both_fingerprints(
    cloud: Cloud, tmp_path: Path, part: str, stem: str, word: str
) -> None:
    variant = copy_model(EDGE_MODEL, tmp_path / "variant")
    shift_weights(variant, part, stem)
    result = await generate(cloud, variant)
    (warning,) = result.report["warnings"]
    assert warning.startswith(f"{word}: cloud ")
    assert result.report["step_sources"] == SOURCES


def test_command_line_shows_the_warning(run_edge: RunEdge, cloud: Cloud, tmp_path: Path) -> None:
    changes, pieces = DIFFERENCES["scheduler"]
    variant = copy_model(EDGE_MODEL, tmp_path / "variant", changes)
    few = ("--mode", "ecdiff", "--num-inference-steps", "5")
    done = run_edge("generate", "a cat", *few, "--cloud", cloud.address, "--edge-model", variant)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: ")
    for piece in pieces:
        assert piece in line


@pytest.mark.asyncio(loop_scope="session")
async def test_pair_that_shares_no_latents_is_refused_by_the_api(cloud: Cloud, tmp_path: Path) -> None:
    variant = with_latent_channels(EDGE_MODEL, tmp_path / "eight", 8)
    with pytest.raises(IncompatibleModels, match="latent channels is 4 in the cloud, 8 on the edge"):
        await generate(cloud, variant)
