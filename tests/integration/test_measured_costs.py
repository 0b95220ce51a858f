"""What things take, as the edge gathers it from a real cloud: link, cloud, small model, and past generations."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import torch

from bench.network import EmulatedNetwork, Link
from edge_client import EdgeClient
from edge_client.cloud_link import CloudLink
from edge_client.edge_model import EdgeModel
from edge_client.local_cloud import half_of_the_cores, usable_cores
from edge_client.measured_costs import MeasuredCosts
from harness.cloud import Cloud
from harness.reference import EDGE_MODEL
from harness.waiting import eventually
from wire.credentials import Credentials
from wire.messages import Source, Step


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[EdgeModel]:
    edge = await EdgeModel.load(str(EDGE_MODEL))
    yield edge
    edge.close()
    torch.set_num_threads(1)  # as for all tests here: threads that are started later take the last value


def step(seconds: float, source: Source = Source.CLOUD) -> Step:
    return Step(step_index=0, source=source, compute_seconds=seconds)


async def test_everything_is_known_before_the_first_generation(cloud: Cloud, edge: EdgeModel) -> None:
    way = Link(latency_ms=20, bandwidth_mbit_s=8, queue_ms=40)
    async with EmulatedNetwork(cloud.address, way) as network:
        link = await CloudLink.connect((network.address,), Credentials(), wait_seconds=60)
        try:
            shape = edge.model.latents_shape(0, 0, 1)
            costs = await MeasuredCosts(edge, link).now(shape)
        finally:
            await link.close()
    assert 0.04 < costs.rtt_seconds < 0.2
    assert costs.bandwidth_bytes_per_second == pytest.approx(1e6, rel=0.3)
    assert costs.latents_bytes == 4 * shape[1] * shape[2] * shape[3]
    for part in ("cloud_step", "edge_step", "encode_prompt", "decode"):
        assert 0.0 < getattr(costs, f"{part}_seconds") < 100.0
    assert costs.cloud_queue_seconds == 0.0


async def test_a_batch_and_a_larger_picture_cost_in_proportion(cloud: Cloud, edge: EdgeModel) -> None:
    link = await CloudLink.connect((cloud.address,), Credentials(), wait_seconds=60)
    try:
        measured = MeasuredCosts(edge, link)
        one = await measured.now(edge.model.latents_shape(0, 0, 1))
        four = await measured.now(edge.model.latents_shape(0, 0, 4))
    finally:
        await link.close()
    assert four.latents_bytes == 4 * one.latents_bytes
    for part in ("cloud_step_seconds", "edge_step_seconds", "decode_seconds"):
        assert getattr(four, part) == pytest.approx(4 * getattr(one, part))
    assert four.encode_prompt_seconds == one.encode_prompt_seconds


async def test_on_shared_cores_generations_tell_the_clouds_step_without_the_shadow(
    cloud: Cloud, edge: EdgeModel
) -> None:
    await edge.run(torch.set_num_threads, usable_cores())
    link = await CloudLink.connect((cloud.address,), Credentials(), wait_seconds=60)
    try:
        measured = MeasuredCosts(edge, link)
        shape = edge.model.latents_shape(0, 0, 1)
        edge_step_seconds = (await measured.now(shape)).edge_step_seconds
        steps = [step(500.0), step(500.0), step(0.1, Source.EXTRAPOLATED)]
        measured.learn(steps, num_shadowed=2, latents_shape=shape)
        costs = await measured.now(shape)
    finally:
        await link.close()
    assert costs.cloud_step_seconds == pytest.approx(500.0 - edge_step_seconds)
    assert costs.shared_cores


@pytest.mark.skipif(usable_cores() < 2, reason="one core cannot be kept apart")
async def test_models_with_half_of_the_cores_each_share_none(cloud: Cloud, edge: EdgeModel) -> None:
    await edge.run(torch.set_num_threads, half_of_the_cores())
    link = await CloudLink.connect((cloud.address,), Credentials(), wait_seconds=60)
    try:
        measured = MeasuredCosts(edge, link)
        shape = edge.model.latents_shape(0, 0, 1)
        measured.learn([step(500.0)], num_shadowed=1, latents_shape=shape)
        costs = await measured.now(shape)
    finally:
        await link.close()
    assert not costs.shared_cores
    assert costs.cloud_step_seconds == pytest.approx(500.0)


async def test_a_picture_does_not_wait_for_the_goodbye(cloud: Cloud) -> None:
    way = Link(latency_ms=400)
    async with EmulatedNetwork(cloud.address, way) as network:
        async with EdgeClient(cloud=network.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client:
            await client.generate("a cat", mode="cloud", num_inference_steps=3)
            assert cloud.num_sessions() == 1, "Close is not at the cloud yet"
        # Leaving the client says it all the same.
        await eventually(cloud.is_empty, "the session to be closed")
