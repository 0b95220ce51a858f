"""One of two replicas is killed, frozen or drained under many generations: every picture arrives."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from edge_client import EdgeClient, GenerationResult
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, StartCloud
from harness.reference import EDGE_MODEL
from harness.waiting import eventually
from orchestrator.plan import PlanOptions
from wire.credentials import Credentials
from wire.health import status
from wire.messages import Array

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, HANDOFF = 20, 16
SILENCE_SECONDS = 3.0
# What a machine that is busy with two clouds and all the edges may add to it.
BUSY_SECONDS = 7.0


def a_request(seed: int) -> GenerationRequest:
    options = PlanOptions(num_inference_steps=STEPS, handoff_step=HANDOFF)
    return GenerationRequest(prompt="a cat", mode="split", plan_options=options, guidance_scale=7.5, seed=seed)


@dataclass(kw_only=True)
class Edge:
    """One generation on an edge of its own, as its user sees it."""

    client: EdgeClient
    seed: int
    num_steps: int = 0
    moved_at: float = 0.0

    def __call__(self, snapshot: Snapshot) -> None:
        self.num_steps = len(snapshot.step_sources)
        if "goes on from step" in snapshot.note:
            self.moved_at = time.monotonic()

    async def run(self) -> GenerationResult:
        return await self.client.run(a_request(self.seed), self)


@dataclass(kw_only=True)
class Fleet:
    """Two replicas, `dying` and `living`, and edges that prefer the one or the other in turn.

    Both are held in the middle of the sessions until the fault has come.
    """

    dying: Cloud
    living: Cloud
    edges: list[Edge] = field(default_factory=list)

    async def generate(self, fault: Callable[[], object]) -> list[GenerationResult]:
        """Run every edge's generation, with the fault in the middle of all of them."""
        clouds, num_each = (self.dying, self.living), len(self.edges) // 2
        for cloud in clouds:
            cloud.unet.hold_after(0)
        generating = [asyncio.create_task(edge.run()) for edge in self.edges]
        try:
            # Else one that comes early has made every step that is allowed before the next one is there.
            await eventually(lambda: all(cloud.num_sessions() == num_each for cloud in clouds), "every session")
            for cloud in clouds:
                # With one session a pass: three steps of each, in turn.
                cloud.unet.hold_after(3 * num_each)
            await eventually(lambda: all(edge.num_steps for edge in self.edges), "a step of every session")
            await eventually(lambda: self.dying.unet.holding and self.living.unet.holding, "both to be held")
            fault()
            self.living.unet.open()
            return await asyncio.gather(*generating)
        finally:
            for task in generating:
                task.cancel()
            await asyncio.gather(*generating, return_exceptions=True)

    def check(self, results: list[GenerationResult], undisturbed: dict[int, Array]) -> list[Edge]:
        """Every picture is the one it would have been; return the edges whose reports say that they moved."""
        moved = []
        for edge, result in zip(self.edges, results, strict=True):
            report = result.report
            assert report["step_sources"] == "C" * HANDOFF + "e" * (STEPS - HANDOFF)
            assert report["handoff"] == {"reason": "plan", "step": HANDOFF}
            assert result.images[0].size == (128, 128)
            if report["clouds"] == [self.living.address]:
                assert report["fallbacks"] == []
                np.testing.assert_array_equal(result.latents, undisturbed[edge.seed])
                continue
            assert report["clouds"] == [self.dying.address, self.living.address]
            (line,) = report["fallbacks"]
            assert line.startswith(f"left the cloud at {self.dying.address} (")
            assert f"the cloud at {self.living.address} goes on from step " in line
            # DDIM keeps nothing from step to step; both replicas compute alike.
            np.testing.assert_array_equal(result.latents, undisturbed[edge.seed])
            moved.append(edge)
        assert len(moved) == len(self.edges) // 2
        return moved


@contextlib.asynccontextmanager
async def a_fleet(start_cloud: StartCloud, num_edges: int, *arguments: str) -> AsyncIterator[Fleet]:
    # One session a pass: a sum then does not depend on who else is there, and results are equal to the last bit.
    dying, living = start_cloud("--max-batch", "1", *arguments), start_cloud("--max-batch", "1")
    fleet = Fleet(dying=dying, living=living)
    async with contextlib.AsyncExitStack() as stack:
        for seed in range(num_edges):
            preferred = (dying, living) if seed % 2 else (living, dying)
            client = EdgeClient(
                cloud=",".join(cloud.address for cloud in preferred),
                edge_model=str(EDGE_MODEL),
                silence_seconds=SILENCE_SECONDS,
            )
            fleet.edges.append(Edge(client=await stack.enter_async_context(client), seed=seed))
            await client.load()
        yield fleet


async def undisturbed_latents(cloud: Cloud, num_edges: int) -> dict[int, Array]:
    """What each seed gives on a replica that nothing happens to."""
    async with EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client:
        return {seed: (await client.run(a_request(seed))).latents for seed in range(num_edges)}


async def health(cloud: Cloud) -> str:
    return await status(cloud.address, service="", credentials=Credentials(), timeout_seconds=10)


HOW_MANY = [4, pytest.param(16, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num_edges", HOW_MANY)
async def test_a_replica_that_is_killed_costs_no_picture(start_cloud: StartCloud, cloud: Cloud, num_edges: int) -> None:
    async with a_fleet(start_cloud, num_edges) as fleet:
        started = time.monotonic()
        results = await fleet.generate(lambda: fleet.dying.program.signal(signal.SIGKILL))
        seconds = time.monotonic() - started
        moved = fleet.check(results, await undisturbed_latents(cloud, num_edges))
        await eventually(fleet.living.is_empty, "every session to be over")
    print(f"\nSIGKILL under {num_edges} generations: all done in {seconds:.1f} s, {len(moved)} moved")


@pytest.mark.parametrize("num_edges", HOW_MANY)
async def test_a_replica_that_freezes_is_left_in_time_and_harms_nobody_when_it_thaws(
    start_cloud: StartCloud, cloud: Cloud, num_edges: int
) -> None:
    async with a_fleet(start_cloud, num_edges) as fleet:
        frozen_at = 0.0

        def freeze() -> None:
            nonlocal frozen_at
            frozen_at = time.monotonic()
            fleet.dying.program.signal(signal.SIGSTOP)

        results = await fleet.generate(freeze)
        moved = fleet.check(results, await undisturbed_latents(cloud, num_edges))
        latest = max(edge.moved_at - frozen_at for edge in moved)
        assert latest < SILENCE_SECONDS + BUSY_SECONDS
        fleet.dying.program.signal(signal.SIGCONT)
        fleet.dying.unet.open()
        await eventually(fleet.dying.is_empty, "the sessions of edges that have left to be gone")
        assert await health(fleet.dying) == "SERVING"
        async with EdgeClient(cloud=fleet.dying.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client:
            again = (await client.run(a_request(0))).report
        assert again["fallbacks"] == []
        assert fleet.living.is_empty()
    print(f"\nSIGSTOP under {num_edges} generations: the last of {len(moved)} moved after {latest:.1f} s")


@pytest.mark.parametrize("num_edges", HOW_MANY)
async def test_what_a_drain_cannot_finish_moves_in_time(start_cloud: StartCloud, cloud: Cloud, num_edges: int) -> None:
    grace_seconds = 5.0
    async with a_fleet(start_cloud, num_edges, "--grace-seconds", str(grace_seconds)) as fleet:
        drained_at = 0.0

        def drain() -> None:
            nonlocal drained_at
            drained_at = time.monotonic()
            fleet.dying.program.signal(signal.SIGTERM)

        async with asyncio.TaskGroup() as tasks:
            # Its device stays held: nothing there can finish, and the process has to end all the same.
            ending = tasks.create_task(end_of(fleet.dying))
            results = await fleet.generate(drain)
        moved = fleet.check(results, await undisturbed_latents(cloud, num_edges))
    seconds = ending.result() - drained_at
    for result in results:
        assert all("the service is shutting down" in line for line in result.report["fallbacks"])
    # Not at once: it might have been done in time.
    assert min(edge.moved_at for edge in moved) - drained_at > grace_seconds / 2
    assert max(edge.moved_at for edge in moved) < ending.result()
    assert seconds < grace_seconds + 1.0
    assert fleet.dying.program.wait().returncode == 0
    print(f"\nSIGTERM under {num_edges} generations: ended after {seconds:.1f} of {grace_seconds:g} s")


async def end_of(cloud: Cloud) -> float:
    await eventually(lambda: cloud.program.ended, "the end of the process")
    return time.monotonic()


async def test_what_a_drain_can_finish_stays_and_newcomers_go_elsewhere(start_cloud: StartCloud) -> None:
    async with a_fleet(start_cloud, 2) as fleet:
        staying = fleet.edges[1]
        fleet.dying.unet.hold_after(3)
        finishing = asyncio.create_task(staying.run())
        await eventually(lambda: fleet.dying.unet.holding, "the session to be under way")
        fleet.dying.program.signal(signal.SIGTERM)
        await eventually(lambda: '"draining"' in fleet.dying.program.stderr, "the drain to begin")
        assert await health(fleet.dying) == "NOT_SERVING"
        both = f"{fleet.dying.address},{fleet.living.address}"
        async with EdgeClient(cloud=both, edge_model=str(EDGE_MODEL)) as newcomer:
            began = time.monotonic()
            report = (await newcomer.run(a_request(9))).report
            # One that drains or loads is not waited for while another serves.
            assert time.monotonic() - began < SILENCE_SECONDS + BUSY_SECONDS
        assert report["clouds"] == [fleet.living.address]
        assert report["warnings"] == [
            f"{fleet.dying.address} does not serve; using the cloud at {fleet.living.address}"
        ]
        assert report["seconds"]["connect"] < 5
        fleet.dying.unet.open()
        stayed = (await finishing).report
        assert stayed["clouds"] == [fleet.dying.address]
        assert stayed["fallbacks"] == []
        assert (await asyncio.to_thread(fleet.dying.program.wait)).returncode == 0
