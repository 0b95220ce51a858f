"""Several replicas behind one address of Ray Serve: sessions at the same time, a replica that dies, more and fewer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from harness import carrier

pytest.importorskip("ray.serve", reason=carrier.NO_RAY)

from ray.serve.grpc_util import gRPCInputStream

from deploy.ray.call import received
from diffusion.loading import load_model
from edge_client import EdgeClient, GenerationResult
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.ray_cloud import RayServe, ray_serve
from harness.reference import EDGE_MODEL
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.errors import StreamBroke

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

STEPS, HANDOFF, LOST_AT = 12, 10, 4
PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def replicas() -> RayServe:
    return ray_serve()


@pytest.fixture(autouse=True, scope="module")
def _one_edge_model() -> Iterator[None]:
    """For all clients: it cannot be loaded twice at a time in one process."""
    edge = load_model(EDGE_MODEL, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_client.edge_model.load_model", lambda *args, **kwargs: edge)
        yield


def a_request(seed: int) -> GenerationRequest:
    plan = PlanOptions(num_inference_steps=STEPS, handoff_step=HANDOFF)
    return GenerationRequest(prompt="a cat", mode="split", plan_options=plan, seed=seed)


async def until(true: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():
            await asyncio.sleep(0.2)


def busy_replicas(replicas: RayServe) -> dict[str, int]:
    """Return how many sessions each replica has."""
    samples = replicas.scrape().labelled("ecdiff_cloud_sessions")
    return {labels["replica"]: int(value) for labels, value in samples if value}


async def generate(replicas: RayServe, seed: int, on_progress: Callable[[Snapshot], object]) -> GenerationResult:
    async with EdgeClient(cloud=str(replicas.address), edge_model=str(EDGE_MODEL)) as client:
        return await client.run(a_request(seed), on_progress)


class Counts:
    """How many steps of the cloud each generation has seen."""

    def __init__(self, number: int) -> None:
        self.steps = [0] * number

    def of(self, index: int) -> Callable[[Snapshot], None]:
        def note(snapshot: Snapshot) -> None:
            self.steps[index] = len(snapshot.step_sources)

        return note


async def test_a_client_that_gives_up_is_no_client_that_has_said_all() -> None:
    async def messages() -> AsyncIterator[pb.ClientMessage]:
        yield pb.ClientMessage(ping=pb.Ping(t0=1.0))
        if gives_up:
            stream.cancel()

    for gives_up in (False, True):
        stream = gRPCInputStream(messages())
        incoming = received(stream)
        assert (await anext(incoming)).ping.t0 == 1.0
        with pytest.raises(StreamBroke if gives_up else StopAsyncIteration):
            await anext(incoming)


async def test_two_replicas_serve_sessions_at_the_same_time(replicas: RayServe) -> None:
    replicas.deploy(min_replicas=2, max_replicas=2)
    assert len({pid for _, pid in replicas.ask("process")}) == 2
    replicas.ask("call_model", "pace")
    counts = Counts(4)
    generations = [asyncio.create_task(generate(replicas, seed, counts.of(seed))) for seed in range(4)]
    await until(lambda: sum(busy_replicas(replicas).values()) == 4, "four sessions")
    assert len(busy_replicas(replicas)) == 2
    replicas.ask("call_model", "run_freely")
    for generation in generations:
        report = (await generation).report
        assert report["step_sources"] == "C" * HANDOFF + "e" * (STEPS - HANDOFF)
        assert report["fallbacks"] == []


async def test_a_replica_that_is_killed_costs_no_picture(replicas: RayServe) -> None:
    replicas.deploy(min_replicas=2, max_replicas=2)
    processes = dict(replicas.ask("process"))
    replicas.ask("call_model", "pace")
    counts = Counts(4)
    generations = [asyncio.create_task(generate(replicas, seed, counts.of(seed))) for seed in range(4)]
    await until(lambda: sum(busy_replicas(replicas).values()) == 4, "four sessions")
    busy = busy_replicas(replicas)
    assert len(busy) == 2
    replicas.ask("call_model", "permit", 4 * LOST_AT)
    await until(lambda: min(counts.steps) > 0, "a step of each")
    doomed = next(iter(busy))
    os.kill(processes[doomed], signal.SIGKILL)
    await until(lambda: doomed not in dict(replicas.ask_living("process")), "one replica less")
    replicas.ask_living("call_model", "run_freely")
    reports = [(await generation).report for generation in generations]
    for report in reports:
        assert report["step_sources"].count("C") + report["step_sources"].count("e") == STEPS
    moved = [report for report in reports if report["fallbacks"]]
    assert len(moved) == busy[doomed]
    for report in moved:
        assert report["clouds"] == [str(replicas.address)] * 2
        assert f"the cloud at {replicas.address} goes on from step" in report["fallbacks"][0]
        assert report["step_sources"] == "C" * HANDOFF + "e" * (STEPS - HANDOFF)
    # Ray puts another in its place.
    await until(lambda: len(replicas.ask_living("process")) == 2, "two replicas again")


async def test_there_are_more_replicas_for_more_sessions_and_fewer_again(replicas: RayServe) -> None:
    replicas.deploy(min_replicas=1, max_replicas=2, max_sessions=2, upscale_seconds=1.0, downscale_seconds=2.0)
    await until(lambda: len(replicas.ask_living("process")) == 1, "one replica")
    replicas.ask_living("call_model", "pace")
    counts = Counts(2)
    generations = [asyncio.create_task(generate(replicas, seed, counts.of(seed))) for seed in range(2)]
    await until(lambda: len(replicas.ask_living("process")) == 2, "two replicas")
    replicas.ask_living("call_model", "run_freely")
    for generation in generations:
        await generation
    await until(lambda: len(replicas.ask_living("process")) == 1, "one replica again")
