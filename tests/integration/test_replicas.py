"""A generation that loses its cloud goes on at another one; where every one is full it waits its turn."""

from __future__ import annotations

import asyncio
import signal

import numpy as np
import pytest

from edge_client import EdgeClient
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, StartCloud
from harness.programs import Programs
from harness.reference import EDGE_MODEL, LATENTS_SHAPE
from harness.scripted_cloud import Send, honest_opened, scripted_cloud, some_latents
from harness.waiting import eventually, running
from orchestrator.handoff import LOST_REASONS
from orchestrator.plan import PlanOptions
from wire.errors import Busy
from wire.messages import Description, HandedOff, Open, Source, State, Step, Totals

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, LOST_AT, HANDOFF = 20, 7, 16


def a_request(seed: int = 5, **options: object) -> GenerationRequest:
    plan = PlanOptions(num_inference_steps=STEPS, handoff_step=HANDOFF, **options)  # type: ignore[arg-type]
    return GenerationRequest(prompt="a cat", mode="split", plan_options=plan, guidance_scale=7.5, seed=seed)


def moves(client: EdgeClient) -> dict[str, float | None]:
    """How often its generations went on at another cloud, by reason."""
    sample = client.metrics.registry.get_sample_value
    return {reason.value: sample("ecdiff_cloud_moves_total", {"reason": reason.value}) for reason in LOST_REASONS}


class Steps:
    """A progress callback that counts the cloud's steps and keeps the notes."""

    def __init__(self) -> None:
        self.count = 0
        self.notes: list[str] = []
        self.phases: set[str] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        self.count = len(snapshot.step_sources)
        self.phases.add(snapshot.phase)
        if snapshot.note:
            self.notes.append(snapshot.note)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_generation_moves_from_the_newest_latents(
    start_cloud: StartCloud, client: EdgeClient, number: signal.Signals
) -> None:
    first, second = start_cloud(), start_cloud()
    first.unet.hold_after(LOST_AT)
    steps = Steps()
    addresses = f"{first.address},{second.address}"
    async with EdgeClient(cloud=addresses, edge_model=str(EDGE_MODEL), silence_seconds=2.0) as mover:
        async with running(mover.run(a_request(), steps)) as generating:
            await eventually(lambda: steps.count == LOST_AT, "the steps before the loss")
            first.program.signal(number)
            result = await generating
        report = result.report
        assert report["step_sources"] == "C" * HANDOFF + "e" * (STEPS - HANDOFF)
        assert report["handoff"] == {"reason": "plan", "step": HANDOFF}
        assert report["clouds"] == [first.address, second.address]
        assert report["nfe"]["cloud"] == HANDOFF
        assert report["nfe"]["cloud_discarded"] == 0
        (line,) = report["fallbacks"]
        assert f"the cloud at {second.address} goes on from step {LOST_AT} of {STEPS}" in line
        assert steps.notes == [line]
        assert moves(mover) == {"cloud_lost": 1, "cloud_full": 0, "cloud_error": 0}
        parts = ("connect", "cloud_queue", "cloud_compute", "network", "handoff", "edge_compute", "decode")
        assert sum(report["seconds"][part] for part in parts) == pytest.approx(report["seconds"]["total"], rel=0.1)
        assert second.nfe()["cloud"] == HANDOFF - LOST_AT
        # DDIM keeps nothing from step to step: the very picture that one cloud makes.
        unmoved = await client.run(a_request())
        np.testing.assert_allclose(result.latents, unmoved.latents, rtol=0, atol=1e-4)
        # The next one begins where this one ended.
        again = await mover.run(a_request(seed=6))
        assert again.report["clouds"] == [second.address]
        assert again.report["fallbacks"] == []


async def test_extrapolation_warms_up_again_and_what_was_lost_is_counted(start_cloud: StartCloud) -> None:
    first, second = start_cloud(), start_cloud()
    first.unet.hold_after(4)
    steps = Steps()
    options = PlanOptions(
        num_inference_steps=STEPS, handoff_step=15, warmup_steps=3, skip_interval=2, smoothing=0.3, predictor="ecdiff"
    )
    request = GenerationRequest(prompt="a cat", mode="ecdiff", plan_options=options, guidance_scale=7.5, seed=5)
    async with (
        EdgeClient(cloud=f"{first.address},{second.address}", edge_model=str(EDGE_MODEL)) as mover,
        running(mover.run(request, steps)) as generating,
    ):
        await eventually(lambda: steps.count == 8, "the steps before the loss")
        first.program.signal(signal.SIGKILL)
        report = (await generating).report
    assert report["step_sources"] == "CCCxxCxx" + "CCCxxCx" + "e" * 5
    assert report["nfe"]["cloud"] == 4 + second.nfe()["cloud"] == 8


async def test_behind_one_address_a_generation_goes_on_at_the_replica_that_is_left(description: Description) -> None:
    begun: list[int] = []

    async def proxy(opening: Open, send: Send) -> None:
        at = opening.start.step_index if isinstance(opening.start, State) else 0
        begun.append(at)
        await send(honest_opened(description, opening, latents_shape=LATENTS_SHAPE))
        for index in range(at, HANDOFF):
            if len(begun) == 1 and index == LOST_AT:
                raise RuntimeError("the replica is gone")
            await send(Step(step_index=index, source=Source.CLOUD, latents=some_latents(LATENTS_SHAPE, index)))
        state = State(step_index=HANDOFF, latents=some_latents(LATENTS_SHAPE, HANDOFF - 1))
        await send(HandedOff(state=state, totals=Totals(nfe_cloud=HANDOFF - at)))

    async with (
        scripted_cloud(description, proxy) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL)) as client,
    ):
        report = (await client.run(a_request())).report
    assert begun == [0, LOST_AT]
    assert report["step_sources"] == "C" * HANDOFF + "e" * (STEPS - HANDOFF)
    assert report["clouds"] == [address, address]
    (line,) = report["fallbacks"]
    assert line.startswith(f"left the cloud at {address} (the stream broke: ")
    assert line.endswith(f"the cloud at {address} goes on from step {LOST_AT} of {STEPS}")


async def test_a_proxy_without_replicas_is_returned_to_once(description: Description) -> None:
    num_calls = 0

    async def proxy(opening: Open, send: Send) -> None:
        nonlocal num_calls
        num_calls += 1
        raise RuntimeError("there is no replica")

    async with (
        scripted_cloud(description, proxy) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL)) as client,
    ):
        report = (await client.run(a_request())).report
    assert num_calls == 2
    assert report["step_sources"] == "e" * STEPS


async def test_with_no_cloud_left_the_edge_finishes(start_cloud: StartCloud) -> None:
    first, second = start_cloud(), start_cloud()
    for cloud in (first, second):
        cloud.unet.hold_after(LOST_AT)
    steps = Steps()
    async with (
        EdgeClient(cloud=f"{first.address},{second.address}", edge_model=str(EDGE_MODEL)) as mover,
        running(mover.run(a_request(), steps)) as generating,
    ):
        await eventually(lambda: steps.count == LOST_AT, "the steps before the first loss")
        first.program.signal(signal.SIGKILL)
        await eventually(lambda: steps.count == 2 * LOST_AT, "the steps before the second loss")
        second.program.signal(signal.SIGKILL)
        report = (await generating).report
    assert report["step_sources"] == "C" * 14 + "e" * 6
    assert report["handoff"] == {"reason": "cloud_lost", "step": 14}
    assert [line.split(": ")[-1] for line in report["fallbacks"]] == [
        f"the cloud at {second.address} goes on from step 7 of 20".split(": ")[-1],
        "the edge goes on from step 14 of 20",
    ]


async def test_a_hard_bound_on_calls_moves_nowhere(start_cloud: StartCloud) -> None:
    first, second = start_cloud(), start_cloud()
    first.unet.hold_after(LOST_AT)
    steps = Steps()
    async with (
        EdgeClient(cloud=f"{first.address},{second.address}", edge_model=str(EDGE_MODEL)) as mover,
        running(mover.run(a_request(max_cloud_calls=HANDOFF), steps)) as generating,
    ):
        await eventually(lambda: steps.count == LOST_AT, "the steps before the loss")
        first.program.signal(signal.SIGKILL)
        report = (await generating).report
    assert report["step_sources"] == "C" * LOST_AT + "e" * (STEPS - LOST_AT)
    assert second.nfe()["cloud"] == 0


async def test_a_cloud_with_another_model_is_passed_over(start_cloud: StartCloud, programs: Programs) -> None:
    first, other = start_cloud(), start_cloud(model=EDGE_MODEL)
    first.unet.hold_after(LOST_AT)
    steps = Steps()
    async with (
        EdgeClient(cloud=f"{first.address},{other.address}", edge_model=str(EDGE_MODEL)) as mover,
        running(mover.run(a_request(), steps)) as generating,
    ):
        await eventually(lambda: steps.count == LOST_AT, "the steps before the loss")
        first.program.signal(signal.SIGKILL)
        report = (await generating).report
    assert report["handoff"] == {"reason": "cloud_lost", "step": LOST_AT}
    assert other.nfe()["cloud"] == 0


async def test_a_full_cloud_is_left_for_one_with_a_place(start_cloud: StartCloud) -> None:
    full, free = start_cloud("--max-sessions", "1"), start_cloud()
    async with occupied(full), EdgeClient(cloud=f"{full.address},{free.address}", edge_model=str(EDGE_MODEL)) as mover:
        report = (await mover.run(a_request())).report
    assert report["step_sources"] == "C" * HANDOFF + "e" * 4
    assert moves(mover) == {"cloud_lost": 0, "cloud_full": 1, "cloud_error": 0}
    assert report["clouds"] == [full.address, free.address]


async def test_where_every_cloud_is_full_a_place_is_waited_for(start_cloud: StartCloud) -> None:
    full = start_cloud("--max-sessions", "1")
    steps = Steps()
    async with (
        occupied(full) as occupant,
        EdgeClient(cloud=full.address, edge_model=str(EDGE_MODEL)) as patient,
        running(patient.run(a_request(), steps)) as generating,
    ):
        await eventually(lambda: "waiting for a place" in steps.phases, "a refusal")
        full.unet.open()
        report = (await generating).report
        await occupant
    assert report["step_sources"] == "C" * HANDOFF + "e" * 4
    assert report["fallbacks"] == []


async def test_it_is_not_waited_for_longer_than_the_deadline_allows(start_cloud: StartCloud) -> None:
    full = start_cloud("--max-sessions", "1")
    steps = Steps()
    async with occupied(full), EdgeClient(cloud=full.address, edge_model=str(EDGE_MODEL)) as patient:
        options = PlanOptions(num_inference_steps=STEPS, deadline_ms=1500.0)
        request = GenerationRequest(prompt="a cat", mode="adaptive", plan_options=options, guidance_scale=7.5)
        report = (await patient.run(request, steps)).report
    assert report["step_sources"] == "e" * STEPS
    assert report["handoff"]["reason"] == "cloud_full"
    assert "waiting for a place" in steps.phases
    # Without a deadline it waits for five seconds.
    assert report["seconds"]["network"] < 1.5


async def test_a_cloud_that_says_at_once_again_and_again_is_left(description: Description) -> None:
    async def refuse(opening: Open, send: Send) -> None:
        raise Busy("full", retry_after_seconds=0.0)

    async with (
        scripted_cloud(description, refuse) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL)) as patient,
    ):
        report = (await asyncio.wait_for(patient.run(a_request()), 60)).report
    assert report["step_sources"] == "e" * STEPS
    assert report["handoff"] == {"reason": "cloud_full", "step": 0}


class occupied:
    """Somebody else's generation that holds the only place of a cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    async def __aenter__(self) -> asyncio.Task[object]:
        self._cloud.unet.hold_after(2)
        self._client = EdgeClient(cloud=self._cloud.address, edge_model=str(EDGE_MODEL))
        steps = Steps()
        self._task: asyncio.Task[object] = asyncio.create_task(self._client.run(a_request(seed=9), steps))
        await eventually(lambda: steps.count == 2, "the occupant's steps")
        return self._task

    async def __aexit__(self, *_: object) -> None:
        self._cloud.unet.open()
        await self._task
        await self._client.close()
