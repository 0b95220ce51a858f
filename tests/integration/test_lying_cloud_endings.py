"""A cloud that ends its stream with an error, too early, late or never costs no picture."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from liar_harness import GOOD_STEPS, LATENTS, STEPS, Liar, check_taken_over

from edge_client import EdgeClient
from edge_client.request import GenerationRequest
from harness.reference import EDGE_MODEL
from harness.scripted_cloud import Send, scripted_cloud
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.errors import Busy, CorruptTensor, EcdiffError, InvalidRequest, ModelError, NotServing, Unauthenticated
from wire.messages import Finished, Heartbeat, Open, Source, State, Step, Totals

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelError("the cloud model ran out of memory"), "cloud_error"),
        (CorruptTensor("the checksum of latents is wrong"), "cloud_error"),
        (InvalidRequest("changed its mind"), "cloud_error"),
        (NotServing("the service is shutting down"), "cloud_lost"),
        (Busy("too many sessions are parked"), "cloud_full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, EcdiffError) else "",
)
async def test_error_on_the_way_costs_no_picture(liar: Liar, error: EcdiffError, reason: str) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        raise error

    result = await liar.generate(script)
    check_taken_over(result, reason, GOOD_STEPS)
    assert str(error) in result.report["fallbacks"][0]


async def test_stream_that_ends_early_costs_no_picture(liar: Liar) -> None:
    result = await liar.generate(liar.start_well)
    check_taken_over(result, "cloud_lost", GOOD_STEPS)


async def test_cloud_that_drains_at_open_costs_no_picture(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        raise NotServing("the service is shutting down")

    check_taken_over(await liar.generate(script), "cloud_lost", 0)


async def test_steps_whose_latents_never_came_count_as_discarded(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        for index in range(GOOD_STEPS, STEPS - 1):
            await send(Step(step_index=index, source=Source.CLOUD))
        raise NotServing("gone")

    check_taken_over(await liar.generate(script), "cloud_lost", GOOD_STEPS, discarded=STEPS - 1 - GOOD_STEPS)


async def test_wrong_request_is_told_before_the_session_exists(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        raise Unauthenticated("wrong token")

    with pytest.raises(Unauthenticated, match="wrong token"):
        await liar.generate(script)


IDLE_TALK: dict[str, tuple[pb.ServerMessage | Heartbeat, str]] = {
    "heartbeats": (Heartbeat(step_index=GOOD_STEPS), "no step for 0.5 s"),
    "heartbeats-of-the-queue": (
        Heartbeat(queue_position=7, step_index=GOOD_STEPS),
        "others before this session for 5 s",
    ),
    "fragments": (pb.ServerMessage(fragment=pb.Fragment(total_bytes=4096, data=b"x")), "no step for 0.5 s"),
}


@pytest.mark.parametrize(("message", "words"), IDLE_TALK.values(), ids=IDLE_TALK)
async def test_cloud_that_talks_and_makes_no_step_costs_no_picture(
    liar: Liar, message: pb.ServerMessage | Heartbeat, words: str
) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        while True:
            await send(message)
            await asyncio.sleep(0.05)

    async with (
        scripted_cloud(liar.description, script) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60, step_seconds=0.5) as client,
    ):
        options = PlanOptions(num_inference_steps=STEPS)
        result = await client.run(GenerationRequest(prompt="a cat", mode="cloud", plan_options=options))
    check_taken_over(result, "cloud_lost", GOOD_STEPS)
    assert words in result.report["fallbacks"][0]


async def test_cloud_that_ends_no_call_does_not_hold_up_the_edge(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.open(opening, send)
        for index in range(STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))
        await send(Finished(state=State(step_index=STEPS, latents=LATENTS[-1]), totals=Totals(nfe_cloud=STEPS)))
        await asyncio.sleep(60)

    result = await liar.generate(script)
    assert result.report["handoff"] is None
    assert result.report["fallbacks"] == []
    np.testing.assert_array_equal(result.latents, LATENTS[-1])


async def test_cancelling_while_the_session_closes_is_not_swallowed(liar: Liar) -> None:
    finished = asyncio.Event()

    async def script(opening: Open, send: Send) -> None:
        await liar.open(opening, send)
        for index in range(STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))
        await send(Finished(state=State(step_index=STEPS, latents=LATENTS[-1]), totals=Totals(nfe_cloud=STEPS)))
        finished.set()
        await asyncio.sleep(60)

    running = asyncio.ensure_future(liar.generate(script))
    await finished.wait()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
