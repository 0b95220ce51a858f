"""`EdgeClient` as README shows it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from edge_client import EdgeClient
from harness.cloud import Cloud
from harness.reference import EDGE_MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_concurrent_generations_on_one_client_take_turns(cloud: Cloud) -> None:
    async with EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL)) as client:
        together = await asyncio.gather(
            *(client.generate("a cat", mode="split", num_inference_steps=4, seed=seed) for seed in (1, 2))
        )
        alone = [await client.generate("a cat", mode="split", num_inference_steps=4, seed=seed) for seed in (1, 2)]
    for one, other in zip(together, alone, strict=True):
        assert one.report["fallbacks"] == []
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


async def test_options_of_plan_and_request_go_by_their_names(client: EdgeClient) -> None:
    result = await client.generate(
        "a cat", mode="ecdiff", num_inference_steps=8, warmup_steps=3, skip_interval=1, handoff_step=6, num_images=2
    )
    assert result.report["step_sources"] == "CCCxCxee"
    assert len(result.images) == 2
    assert result.latents.shape[0] == 2


async def test_the_report_says_what_the_process_held_at_most(client: EdgeClient) -> None:
    memory = (await client.generate("a cat", mode="edge", num_inference_steps=4)).report["memory"]
    assert memory["peak_rss_bytes"] > 100 * 2**20  # torch alone
    assert memory["peak_device_bytes"] is None


async def test_an_unknown_option_is_refused_by_its_name(client: EdgeClient) -> None:
    with pytest.raises(TypeError, match="colour"):
        await client.generate("a cat", colour="red")


async def test_the_seconds_of_a_split_run_add_up_to_the_total(client: EdgeClient) -> None:
    seconds = (await client.generate("a cat", mode="split", num_inference_steps=20)).report["seconds"]
    parts = ("connect", "cloud_queue", "cloud_compute", "network", "handoff", "edge_compute", "decode")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["total"], rel=0.1, abs=0.05)
