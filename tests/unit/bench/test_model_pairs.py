"""Published pairs: counted here as they were published, and the page says what the bench wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.pairs.measure import outline
from bench.pairs.published import PAIRS
from bench.pairs.show import tables
from diffusion.compatibility import check_pair
from diffusion.families import FAMILIES

ROOT = Path(__file__).resolve().parents[3]
MODELS = {model.hub_id: model for pair in PAIRS.values() for model in (pair.cloud, pair.edge)}
# What others count who have the weights.
COUNTED = {
    "CompVis/stable-diffusion-v1-4": 859_520_964,
    "stabilityai/stable-diffusion-xl-base-1.0": 2_567_463_684,
    "stabilityai/stable-diffusion-2-1-base": 865_910_724,
}


@pytest.mark.parametrize("hub_id", MODELS)
def test_a_published_configuration_is_one_that_is_run_and_of_the_size_that_its_makers_say(tmp_path, hub_id) -> None:
    model = MODELS[hub_id]
    built = outline(model, tmp_path / "model")
    counted = built.info.num_parameters
    assert counted == pytest.approx(model.said_parameters * 1e9, rel=0.04)
    assert counted == COUNTED.get(hub_id, counted)
    assert built.info.default_guidance_scale > 0


@pytest.mark.parametrize("name", PAIRS)
def test_both_models_of_a_published_pair_share_their_latents(tmp_path, name) -> None:
    pair = PAIRS[name]
    cloud, edge = (outline(model, tmp_path / side) for side, model in (("cloud", pair.cloud), ("edge", pair.edge)))
    assert check_pair(cloud.info, edge.info, text_encoder="cloud").refusal is None


def test_every_family_has_a_published_pair() -> None:
    assert {model.pipeline for model in MODELS.values()} == set(FAMILIES)


def test_the_page_has_the_tables_that_the_bench_wrote() -> None:
    page = (ROOT / "docs" / "model-pairs.md").read_text()
    results = json.loads((ROOT / "bench" / "results" / "pairs.json").read_text())
    assert [line for lines in tables(results).values() for line in lines if line not in page] == []


def test_the_bytes_are_those_of_the_ratios_that_bench_codec_published() -> None:
    results = json.loads((ROOT / "bench" / "results" / "pairs.json").read_text())
    codecs = json.loads((ROOT / "bench" / "results" / "codec.json").read_text())["tensors"]
    published = {row["codec"]: row["ratio"] for row in codecs if (row["dtype"], row["num_images"]) == ("float16", 1)}
    assert results["codecs"] == {codec: published[codec] for codec in results["codecs"]}
