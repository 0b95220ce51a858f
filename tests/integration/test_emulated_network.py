"""gRPC through an emulated network: what it does to the bytes' times never shows in the numbers of a picture."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from bench.network import LINKS, EmulatedNetwork, Link, network_process
from edge_client import EdgeClient
from harness.cloud import Cloud
from harness.reference import EDGE_MODEL, LATENTS_SHAPE, TOLERANCE, distance, read_cases
from harness.waiting import eventually, running

CASE = read_cases()["ecdiff"]
LATENTS_BYTES = 4 * math.prod(LATENTS_SHAPE)

pytestmark = pytest.mark.asyncio(loop_scope="session")


def edge_client(address: str) -> EdgeClient:
    # Patient, so that a busy machine is never taken for a lost cloud.
    return EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60)


async def check_generation(client: EdgeClient) -> dict[str, Any]:
    """Generate, compare with the recorded numbers, return the report."""
    result = await client.generate(CASE.prompt, latents_codec="raw", **CASE.options)
    assert distance(result.latents, CASE.final_latents) < TOLERANCE
    assert result.report["step_sources"] == CASE.step_sources
    assert result.report["fallbacks"] == []
    return result.report


async def test_frames_in_pieces_and_out_of_time_make_the_same_picture(cloud: Cloud) -> None:
    link = Link(latency_ms=1, jitter_ms=5, slice_bytes=3000)
    async with EmulatedNetwork(cloud.address, link) as network, edge_client(network.address) as client:
        await check_generation(client)


async def test_silence_within_the_patience_costs_nothing(cloud: Cloud) -> None:
    async with (
        EmulatedNetwork(cloud.address, Link()) as network,
        edge_client(network.address) as client,
        running(check_generation(client)) as generation,
    ):
        carried = network.down.num_bytes
        # Past the answers to the first contact, in the middle of the stream.
        await eventually(lambda: network.down.num_bytes > carried + 5 * LATENTS_BYTES, "the latents to flow")
        network.blackhole()
        await asyncio.sleep(1)
        assert not generation.done()
        network.restore()
        report = await generation
    assert report["seconds"]["total"] > 1


async def test_network_in_a_process_of_its_own_has_the_round_trip_of_its_link(cloud: Cloud) -> None:
    with network_process(cloud.address, "dsl") as network:
        async with edge_client(network.address) as client:
            report = await check_generation(client)
    assert report["network"]["rtt_seconds"]["min"] >= 2 * LINKS["dsl"].latency_seconds
