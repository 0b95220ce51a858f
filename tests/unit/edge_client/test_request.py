"""What a generation may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from edge_client.request import CODEC_OFFERS, GenerationRequest
from orchestrator.plan import PlanOptions
from wire.messages import Codec


def test_every_codec_can_be_asked_for_by_its_label() -> None:
    assert set(CODEC_OFFERS) == {codec.label for codec in Codec}
    assert all(offer[0].label == name for name, offer in CODEC_OFFERS.items())


def test_lossy_codecs_are_never_offered_unasked() -> None:
    for lossy in (Codec.INT8_BLOCK, Codec.INT8_DELTA):
        assert all(lossy not in offer for name, offer in CODEC_OFFERS.items() if name != lossy.label)


def test_guidance_is_on_above_one_as_in_diffusers() -> None:
    assert not GenerationRequest(prompt="x", guidance_scale=1.0).guided
    assert GenerationRequest(prompt="x", guidance_scale=1.01).guided


def test_the_plan_is_made_once() -> None:
    request = GenerationRequest(prompt="x")
    assert request.plan is request.plan


def test_each_request_has_an_id_of_its_own() -> None:
    assert GenerationRequest(prompt="x").request_id != GenerationRequest(prompt="x").request_id


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"guidance_scale": float("inf")}, "guidance_scale must lie in 0..100"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must lie in 0..1"),
        ({"seed": -1}, "seed must lie in"),
        ({"num_images": 0}, r"num_images must lie in 1\.\.8, not 0"),
        ({"num_images": 9}, r"num_images must lie in 1\.\.8, not 9"),
        ({"height": 0}, r"height must lie in 1\.\.2048, not 0"),
        ({"width": 2049}, r"width must lie in 1\.\.2048, not 2049"),
        ({"prompt": "x" * 2001}, "prompt has 2001 characters; at most 2000"),
        ({"prompt": "caf\udce9"}, "prompt is not UTF-8 text"),
        ({"negative_prompt": "caf\udce9"}, "negative_prompt is not UTF-8 text"),
        ({"plan_options": PlanOptions(num_inference_steps=1001)}, "num_inference_steps must be at most 1000"),
        ({"latents_codec": "gzip"}, "unknown codec 'gzip'"),
        ({"mode": "split", "plan_options": PlanOptions(handoff_step=77)}, "handoff_step must lie in 0..50"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GenerationRequest(**{"prompt": "x", **options})
