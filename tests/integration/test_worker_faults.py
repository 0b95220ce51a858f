"""The device's thread fails, hangs or dies under sessions: they alone pay, health says so, the next request works."""

from __future__ import annotations

import asyncio
import signal
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from cloud_harness import PATIENCE_SECONDS, Stream, always, open_channel, opening, running_cloud

from diffusion.model import Evaluation
from edge_client import EdgeClient
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, StartCloud
from harness.gate import Gate
from harness.impatient_cloud import STUCK_SECONDS
from harness.programs import Programs
from harness.reference import EDGE_MODEL
from harness.waiting import eventually, running
from orchestrator.plan import PlanOptions
from wire.credentials import Credentials
from wire.errors import ModelError, NotServing
from wire.health import status
from wire.messages import Finished, HandedOff, Opened, PromptText, Seed, Step
from wire.serving.address import Address

pytestmark = pytest.mark.asyncio(loop_scope="session")


class _Panic(BaseException):
    """As the panics of the tokenizer's Rust: no Exception."""


# ------------------------------------------------------------------------------------ out of memory


async def test_a_batch_without_room_is_evaluated_one_by_one_and_with_its_memory_given_back() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alone_with_room: list[bool] = []

    def no_room_for_two(evaluations: Sequence[Evaluation]) -> None:
        if len(evaluations) > 1:
            activations = torch.zeros(1000)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        alone_with_room.append(all(each() is None for each in held))

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        alone = Stream(stub)
        await alone.send(opening(always(4), start=Seed(seed=0)))
        expected = (await alone.receive_steps())[2].state.latents
        cloud.model.before = no_room_for_two
        cloud.model.pace()
        streams = [Stream(stub) for _ in range(3)]
        for stream in streams:
            await stream.send(opening(always(4), start=Seed(seed=0)))
        await streams[0].receive_until(Opened)
        while cloud.sample("ecdiff_cloud_sessions") < 3:
            await asyncio.sleep(0.01)
        cloud.model.run_freely()
        for stream in streams:
            *_, ending = await stream.receive_until(Finished)
            np.testing.assert_array_equal(ending.state.latents, expected)
    assert held
    assert all(alone_with_room)


async def test_a_request_that_finds_no_room_ends_alone_and_the_next_ones_are_served() -> None:
    def no_room_for_large(evaluations: Sequence[Evaluation]) -> None:
        if any(evaluation.latents.shape[0] > 2 for evaluation in evaluations):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.before = no_room_for_large
        small, large, later = Stream(stub), Stream(stub), Stream(stub)
        await small.send(opening(always(6)))
        await large.send(opening(always(6), num_images=4))
        error = await large.error()
        assert isinstance(error, ModelError)
        assert str(error) == "the cloud model ran out of memory"
        assert len((await small.receive_steps())[1]) == 6
        await later.send(opening(always(6)))
        assert len((await later.receive_steps())[1]) == 6
        assert not cloud.server.backend.died.is_set()


async def test_after_a_batch_without_room_smaller_ones_are_tried() -> None:
    def no_room_for_three(evaluations: Sequence[Evaluation]) -> None:
        if len(evaluations) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.before = no_room_for_three
        cloud.model.pace()
        streams = [Stream(stub) for _ in range(4)]
        await streams[0].send(opening(always(6)))
        await cloud.model.begun(1)
        for stream in streams[1:]:
            await stream.send(opening(always(6)))
        while cloud.sample("ecdiff_cloud_sessions") < 4:
            await asyncio.sleep(0.01)
        cloud.model.run_freely()
        for stream in streams:
            await stream.receive_until(Finished)
        sizes = cloud.model.batch_sizes
        assert [size for size in sizes if size > 2] == [4]
        assert 2 in sizes[sizes.index(4) :]


# ------------------------------------------------------------------------------------ poison


async def test_what_panics_in_native_code_ends_its_session_only() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        encode = cloud.model.encode_prompt

        def panic(prompt: str, *arguments: object, **options: object) -> object:
            if prompt == "poison":
                raise _Panic("index out of bounds")
            return encode(prompt, *arguments, **options)

        cloud.model.encode_prompt = panic
        good, bad, later = Stream(stub), Stream(stub), Stream(stub)
        await good.send(opening(always(6)))
        await bad.send(opening(always(6), conditioning=PromptText(prompt="poison")))
        error = await bad.error()
        assert isinstance(error, ModelError)
        assert "index out of bounds" in str(error)
        await good.receive_steps()
        await later.send(opening(always(2)))
        await later.receive_steps()
        assert not cloud.server.backend.died.is_set()


# ------------------------------------------------------------------------------------ leaving


async def test_one_session_that_is_aborted_in_a_shared_pass_changes_nothing_for_the_others() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        endings = []
        for aborts in (False, True):
            cloud.model.forget()
            cloud.model.pace()
            streams = [Stream(stub) for _ in range(3)]
            for seed, stream in enumerate(streams):
                await stream.send(opening(always(6), start=Seed(seed=seed)))
                await stream.receive_until(Opened) if seed == 0 else None
            cloud.model.permit(3)
            await cloud.model.begun(4)
            if aborts:
                assert cloud.model.batch_sizes[-1] == 3
                streams[1].call.cancel()
            cloud.model.run_freely()
            endings.append([(await streams[seed].receive_steps())[2].state.latents for seed in (0, 2)])
        for alone, beside in zip(*endings, strict=True):
            np.testing.assert_allclose(alone, beside, rtol=0, atol=1e-5 * float(alone.std()))


# ------------------------------------------------------------------------------------ death


async def test_when_the_device_is_lost_all_that_is_under_way_ends_at_once() -> None:
    """Of three sessions the second shares no pass with the first: none is tried on what cannot serve it."""
    async with running_cloud(grace_seconds=60.0) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        streams, late = [Stream(stub) for _ in range(3)], Stream(stub)
        for stream in streams:
            await stream.send(opening(always(5)))
        await cloud.model.begun(1)
        cloud.model.lose_device()
        cloud.model.run_freely()
        for stream in streams:
            assert "device thread" in str(await stream.error())
        assert cloud.server.backend.died.is_set()
        assert cloud.model.num_begun == 1
        # Let in before the service has begun to end: nobody will serve it, and it is not kept for the grace period.
        await late.send(opening(always(2)))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await cloud.server.drain()
        assert time.monotonic() - started < 10
        assert isinstance(await late.error(), NotServing)


# ------------------------------------------------------------------------------------ hanging


def impatient_cloud(programs: Programs, folder: Path) -> Cloud:
    """A service of its own process that gives up a device that hangs, and that a test can let hang."""
    gates = folder / f"impatient-gates-{len(list(folder.iterdir()))}"
    Gate.create(gates)
    return Cloud(programs.forked("harness.impatient_cloud", gate=gates), gates)


async def test_a_device_that_hangs_for_good_ends_the_service_and_its_sessions_go_on_elsewhere(
    programs: Programs, start_cloud: StartCloud, tmp_path: Path
) -> None:
    hanging, other = impatient_cloud(programs, tmp_path), start_cloud()
    options = PlanOptions(num_inference_steps=12, handoff_step=9)
    request = GenerationRequest(prompt="a cat", mode="split", plan_options=options, guidance_scale=7.5, seed=3)
    moved_at, answers = 0.0, []

    def on_progress(snapshot: Snapshot) -> None:
        nonlocal moved_at
        if "goes on from step" in snapshot.note:
            moved_at = time.monotonic()

    addresses = f"{hanging.address},{other.address}"
    # The edge is patient: it is the service that says so.
    async with EdgeClient(cloud=addresses, edge_model=str(EDGE_MODEL), silence_seconds=60, step_seconds=60) as client:
        hanging.unet.hold_after(4)
        async with running(client.run(request, on_progress)) as generating:
            await eventually(lambda: hanging.unet.holding, "the pass that never returns")
            hung_at = time.monotonic()
            while not hanging.program.ended:
                answers.append(await health(hanging))
                await asyncio.sleep(0.05)
            report = (await generating).report
    assert hanging.program.wait().returncode == 1
    assert moved_at - hung_at < 2 * STUCK_SECONDS + 5
    assert report["step_sources"] == "C" * 9 + "e" * 3
    assert report["clouds"] == [hanging.address, other.address]
    assert report["fallbacks"] == [
        f"left the cloud at {hanging.address} (the cloud's device hangs): "
        f"the cloud at {other.address} goes on from step 4 of 12"
    ]
    assert "NOT_SERVING" in answers
    assert "SERVING" not in answers[answers.index("NOT_SERVING") :]
    # What a supervisor does.
    again = impatient_cloud(programs, tmp_path)
    async with EdgeClient(cloud=again.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client:
        assert (await client.run(request)).report["fallbacks"] == []
    again.program.kill()


async def test_a_service_that_was_stopped_for_long_does_not_take_its_device_for_hung(
    programs: Programs, tmp_path: Path
) -> None:
    cloud = impatient_cloud(programs, tmp_path)
    cloud.unet.hold_after(2)
    async with open_channel(Address.parse(cloud.address)) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(6, handoff_step=4)))
        await stream.receive_until(Step)
        await eventually(lambda: cloud.unet.holding, "the middle of a pass")
        cloud.program.signal(signal.SIGSTOP)
        await asyncio.sleep(2.5 * STUCK_SECONDS)
        cloud.program.signal(signal.SIGCONT)
        await asyncio.sleep(0.3)
        cloud.unet.open()
        *_, ending = await stream.receive_until(HandedOff)
        assert ending.state.step_index == 4
    assert "hangs" not in cloud.program.stderr
    cloud.program.kill()


async def health(cloud: Cloud) -> str:
    """What the service says, or `gone`."""
    try:
        return await status(cloud.address, service="", credentials=Credentials(), timeout_seconds=PATIENCE_SECONDS)
    except grpc.aio.AioRpcError:
        return "gone"
