"""A client that takes its time costs the others nothing, and clients that were sent away do not come back together."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import defaultdict

import psutil
import pytest
from cloud_harness import Stream, always, ecdiff, open_channel, opening

from bench.network import EmulatedNetwork, Link
from edge_client import EdgeClient
from edge_client.relay import BUSY_JITTER, MAX_BUSY_SECONDS
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, StartCloud
from harness.reference import EDGE_MODEL
from harness.scripted_cloud import Send, scripted_cloud
from harness.waiting import eventually, running
from orchestrator.plan import PlanOptions
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.errors import Busy
from wire.messages import Close, Credit, Description, Finished, Open, Step
from wire.serving.address import Address

pytestmark = pytest.mark.asyncio(loop_scope="session")

NUM_QUICK, QUICK_STEPS = 4, 60
# 64 KiB a step and nearly all of them extrapolated: 56 MiB come of it in seconds, far more than a forward pass takes.
LARGE = {"height": 256, "width": 256, "num_images": 4}
LARGE_PLAN = ecdiff(900, 900, warmup_steps=2, skip_interval=450)
MAX_GROWTH_BYTES = 16 * 2**20
SLOW = Link(bandwidth_mbit_s=1)


async def read_quickly(stub: CloudDenoiserStub) -> list[float]:
    """Follow a session; return the seconds from each step's arrival to the next one's."""
    stream = Stream(stub)
    await stream.send(opening(always(QUICK_STEPS)))
    arrivals = []
    while not isinstance(message := await stream.receive(), Finished):
        if isinstance(message, Step):
            arrivals.append(time.monotonic())
    await stream.send(Close())
    await stream.ends_ok()
    assert len(arrivals) == QUICK_STEPS
    return [after - before for before, after in itertools.pairwise(arrivals)]


async def read_large(address: str, *, stream_latents: bool) -> int:
    """Follow a session with a window of two, as fast as the link carries it; return how many latents came."""
    num_latents = 0
    async with open_channel(Address.parse(address)) as stub:
        stream = Stream(stub)
        await stream.send(opening(LARGE_PLAN, credit=2, stream_latents=stream_latents, **LARGE))
        while not isinstance(message := await stream.receive(), Finished):
            if isinstance(message, Step) and message.latents is not None:
                num_latents += 1
                await stream.send(Credit())
        await stream.send(Close())
        await stream.ends_ok()
    return num_latents


async def beside(cloud: Cloud, link: Link, *, stream_latents: bool) -> tuple[float, int]:
    """Run the quick sessions beside the large one over a link, with its latents or as mere headers.

    Returns:
        The median of the quick ones' step times in seconds, and the most bytes that the service held.
    """
    service, most_bytes = psutil.Process(cloud.program.pid), 0
    async with (
        EmulatedNetwork(cloud.address, link) as network,
        open_channel(Address.parse(cloud.address)) as stub,
        running(read_large(network.address, stream_latents=stream_latents)) as reading,
    ):
        await eventually(lambda: cloud.num_sessions() == 1, "the large session")
        quick = [asyncio.create_task(read_quickly(stub)) for _ in range(NUM_QUICK)]
        while not all(task.done() for task in (*quick, reading)):
            most_bytes = max(most_bytes, service.memory_info().rss)
            await asyncio.sleep(0.01)
        gaps = [gap for task in quick for gap in task.result()]
        # Few of nine hundred come to a slow reader: the newest ones, and it is at the end when the others are.
        assert reading.result() < 100
    await eventually(cloud.is_empty, "every session to be over")
    return statistics.median(gaps), most_bytes


async def test_a_slow_reader_costs_the_others_nothing(start_cloud: StartCloud) -> None:
    cloud = start_cloud()
    await beside(cloud, Link(), stream_latents=False)  # the first large session has the service take its memory once
    quick_seconds, usual_bytes = await beside(cloud, Link(), stream_latents=False)
    slow_seconds, most_bytes = await beside(cloud, SLOW, stream_latents=True)
    print(
        f"\na step takes {1000 * quick_seconds:.1f} ms beside a session without latents, {1000 * slow_seconds:.1f} ms "
        f"beside a slow reader, who costs the service {(most_bytes - usual_bytes) / 2**20:+.1f} MiB"
    )
    # A service that waited for it would take half a second for each of its latents.
    assert slow_seconds < 2 * quick_seconds + 0.05
    assert most_bytes - usual_bytes < MAX_GROWTH_BYTES


async def test_a_client_that_is_sent_away_comes_back_when_it_was_told_to_and_not_with_the_others(
    description: Description,
) -> None:
    retry_after_seconds, num_clients = 0.5, 3
    asked_at: defaultdict[str, list[float]] = defaultdict(list)

    async def refuse(opening: Open, send: Send) -> None:
        asked_at[opening.request_id].append(time.monotonic())
        raise Busy("full", retry_after_seconds=retry_after_seconds)

    async def generate(address: str) -> dict[str, object]:
        plan = PlanOptions(num_inference_steps=6)
        request = GenerationRequest(prompt="a cat", mode="cloud", plan_options=plan)
        async with EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client:
            return (await client.run(request)).report

    async with scripted_cloud(description, refuse) as address:
        reports = await asyncio.gather(*(generate(address) for _ in range(num_clients)))
    assert [report["handoff"] for report in reports] == [{"reason": "cloud_full", "step": 0}] * num_clients
    assert len(asked_at) == num_clients
    gaps = []
    for times in asked_at.values():
        assert len(times) >= 3
        assert times[-1] - times[0] < MAX_BUSY_SECONDS + 3
        gaps += [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) >= retry_after_seconds
    # Twenty draws from a quarter of a second, and what the machine adds.
    assert max(gaps) - min(gaps) > 0.2 * BUSY_JITTER * retry_after_seconds
    assert statistics.median(gaps) < (1 + BUSY_JITTER) * retry_after_seconds + 0.5
