"""Solvers beside DDIM over real gRPC: their history travels with the handoff."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cloud_harness import Stream as RawStream
from cloud_harness import always, open_channel, opening, running_cloud
from solver_requests import HISTORY, MULTISTEP, SOURCES, STEPS, a_request, reference

from edge_client import EdgeClient
from harness.cloud import Cloud, RunEdge
from harness.reference import EDGE_MODEL, LATENTS_SHAPE, TOLERANCE, ReferencePair, distance
from harness.scripted_cloud import some_latents
from wire.errors import InvalidRequest
from wire.messages import HandedOff, HandOff, State

pytestmark = pytest.mark.asyncio(loop_scope="session")
SCHEDULERS = ["dpmpp-2m", "unipc", "euler"]


@pytest.mark.parametrize("mode", SOURCES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_handoff_equals_an_uninterrupted_run(
    client: EdgeClient, pair: ReferencePair, scheduler: str, mode: str
) -> None:
    result = await client.run(a_request(scheduler, mode))
    assert result.report["step_sources"] == SOURCES[mode]
    assert result.report["scheduler"] == scheduler
    assert result.report["fallbacks"] == []
    assert distance(result.latents, reference(pair, scheduler, mode)) < TOLERANCE


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_zstd_changes_no_bit_of_the_history_and_int8_block_little(client: EdgeClient, scheduler: str) -> None:
    latents = {codec: (await client.run(a_request(scheduler, codec=codec))).latents for codec in ("raw", "zstd")}
    assert np.array_equal(latents["zstd"], latents["raw"])
    lossy = (await client.run(a_request(scheduler, codec="int8-block"))).latents
    assert 0 < distance(lossy, latents["raw"]) < 0.1


async def test_command_line_takes_the_scheduler(run_edge: RunEdge, cloud: Cloud) -> None:
    where = ("--cloud", cloud.address, "--edge-model", EDGE_MODEL, "--quiet")
    done = run_edge("generate", "a cat", "--steps", "3,2", "--scheduler", "unipc", *where)
    assert (done.returncode, done.stderr) == (0, "")
    refused = run_edge("generate", "a cat", "--scheduler", "heun", *where)
    assert refused.returncode == 2
    assert "choose one of ddim, dpmpp-2m, unipc, euler" in refused.stderr


@pytest.mark.parametrize("scheduler", HISTORY)
async def test_only_the_handoff_carries_history_and_its_bytes_are_counted(scheduler: str) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = RawStream(stub)
        await stream.send(opening(always(6, 4), scheduler=scheduler, stream_latents=False))
        _, _, ending = await stream.receive_steps()
        assert isinstance(ending, HandedOff)
        assert set(ending.state.scheduler_state) == HISTORY[scheduler]
        labels = {"direction": "sent", "codec": "raw", "kind": "wire"}
        sent = cloud.sample("ecdiff_latents_bytes_total", **labels)
        assert sent == (1 + len(HISTORY[scheduler])) * ending.state.latents.nbytes
        stream.call.cancel()


@pytest.mark.parametrize("at", [1, 4, 5])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_another_cloud_session_continues_bit_identically_from_the_state(scheduler: str, at: int) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:

        async def end_of(handoff_step: int, **start: State) -> State:
            stream = RawStream(stub)
            await stream.send(opening(always(6, handoff_step), scheduler=scheduler, stream_latents=False, **start))
            _, _, ending = await stream.receive_steps()
            stream.call.cancel()
            return ending.state

        whole, first = await end_of(6), await end_of(at)
        last = await end_of(6, start=first)
        assert np.array_equal(last.latents, whole.latents)
        assert last.scheduler_state == {}
        # From streamed latents alone, as after the loss of a cloud: another trajectory, but not far off.
        bare = await end_of(6, start=dataclasses.replace(first, scheduler_state={}))
        # The last step goes to sigma 0, where nothing but the newest x0 counts.
        assert np.array_equal(bare.latents, whole.latents) == (scheduler == "euler" or at == 5)
        assert distance(bare.latents, whole.latents) < 1


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_a_state_that_was_asked_for_carries_history_too(scheduler: str) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = RawStream(stub)
        await stream.send(opening(always(STEPS), scheduler=scheduler))
        cloud.model.permit(3)
        await cloud.model.begun(4)
        await stream.send(HandOff())
        cloud.model.permit(1)
        _, _, ending = await stream.receive_steps()
        assert 4 <= ending.state.step_index <= 5
        assert set(ending.state.scheduler_state) == HISTORY[scheduler]
        stream.call.cancel()


@pytest.mark.parametrize(
    ("scheduler", "names"),
    [("dpmpp-2m", ["denoised_2"]), ("unipc", ["denoised_1"]), ("euler", ["denoised_1"])],
)
async def test_cloud_refuses_a_history_that_cannot_be(scheduler: str, names: list[str]) -> None:
    latents = some_latents(LATENTS_SHAPE, 0)
    state = State(step_index=3, latents=latents, scheduler_state=dict.fromkeys(names, latents))
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = RawStream(stub)
        await stream.send(opening(always(6), scheduler=scheduler, start=state))
        error = await stream.error()
    assert isinstance(error, InvalidRequest)
    assert "histor" in str(error)
