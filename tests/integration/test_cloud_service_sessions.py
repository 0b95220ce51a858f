"""Many sessions on one device: what one of them does or suffers is nobody else's business."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import numpy as np
import torch
from cloud_harness import Stream, always, ecdiff, letters, open_channel, opening, running_cloud

from diffusion.model import Evaluation
from wire.errors import ModelError, NotServing
from wire.messages import Finished, HandedOff, Heartbeat, Opened, Seed, Step

# ------------------------------------------------------------------------------------ sharing


async def test_two_concurrent_sessions_equal_each_alone() -> None:
    plans = [ecdiff(8, 8), always(8, handoff_step=6)]
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        alone = []
        for seed, plan in enumerate(plans):
            stream = Stream(stub)
            await stream.send(opening(plan, start=Seed(seed=seed)))
            alone.append(await stream.receive_steps())
        cloud.model.forget()
        cloud.model.pace()
        streams = [Stream(stub) for _ in plans]
        for seed, (stream, plan) in enumerate(zip(streams, plans, strict=True)):
            await stream.send(opening(plan, start=Seed(seed=seed)))
            await stream.receive_until(Opened) if seed == 0 else None
        cloud.model.run_freely()
        together = [await stream.receive_until((HandedOff, Finished)) for stream in streams]
        assert 2 in cloud.model.batch_sizes
        for (_, steps, ending), received in zip(alone, together, strict=True):
            assert letters([step for step in received if isinstance(step, Step)]) == letters(steps)
            difference = received[-1].state.latents - ending.state.latents
            assert np.abs(difference).max() < 1e-5 * ending.state.latents.std()


async def test_sessions_of_different_shapes_take_turns() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        streams = [Stream(stub), Stream(stub)]
        await streams[0].send(opening(always(4)))
        await streams[1].send(opening(always(4), height=64, width=64))
        for stream in streams:
            await stream.receive_steps()
        assert set(cloud.model.batch_sizes) == {1}


async def test_heartbeats_tell_the_queue_position() -> None:
    async with running_cloud(max_batch=1) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        first, second = Stream(stub), Stream(stub)
        await first.send(opening(always(3)))
        await cloud.model.begun(1)
        await second.send(opening(always(3)))
        beats = [(await second.receive_until(Heartbeat))[-1] for _ in range(2)]
        assert beats[-1].queue_position == 1
        assert (await first.receive_until(Heartbeat))[-1].queue_position == 0


# ------------------------------------------------------------------------------------ a failing model


async def test_a_model_that_fails_on_one_session_serves_the_others() -> None:
    def refuse_small(evaluations: Sequence[Evaluation]) -> None:
        if any(evaluation.guidance_scale == 2.0 for evaluation in evaluations):
            raise RuntimeError("this one never works")

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.before = refuse_small
        good, bad = Stream(stub), Stream(stub)
        await good.send(opening(always(6)))
        await bad.send(opening(always(6), guidance_scale=2.0))
        error = await bad.error()
        assert isinstance(error, ModelError)
        assert "this one never works" in str(error)
        _, steps, _ = await good.receive_steps()
        assert len(steps) == 6
        assert cloud.sample("ecdiff_nfe_total", source="cloud") == 6


async def test_an_answer_that_is_not_finite_ends_its_session_only() -> None:
    def spoil(predictions: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.full_like(each, torch.nan) if each.shape[0] == 2 else each for each in predictions]

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.after = spoil
        good, bad = Stream(stub), Stream(stub)
        await good.send(opening(always(4)))
        await bad.send(opening(always(4), num_images=2))
        error = await bad.error()
        assert isinstance(error, ModelError)
        assert "step 0 is not finite" in str(error)
        await good.receive_until(Finished)


async def test_running_out_of_memory_ends_the_session_and_not_the_service() -> None:
    def exhaust(evaluations: Sequence[Evaluation]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.before = exhaust
        stream = Stream(stub)
        await stream.send(opening(always(4)))
        error = await stream.error()
        assert isinstance(error, ModelError)
        assert str(error) == "the cloud model ran out of memory"
        cloud.model.before = lambda evaluations: None
        again = Stream(stub)
        await again.send(opening(always(2)))
        await again.receive_until(Finished)


# ------------------------------------------------------------------------------------ draining


async def test_draining_lets_running_sessions_finish_and_nobody_in() -> None:
    async with running_cloud(grace_seconds=60.0) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        running, parked, late = Stream(stub), Stream(stub), Stream(stub)
        await parked.send(opening(always(4, handoff_step=0)))
        await parked.receive_until(HandedOff)
        await running.send(opening(always(3)))
        await cloud.model.begun(1)
        draining = asyncio.create_task(cloud.drain())
        await parked.ends_ok()
        await late.send(opening(always(3)))
        assert isinstance(await late.error(), NotServing)
        cloud.model.run_freely()
        await running.receive_until(Finished)
        await running.ends_ok()
        await draining


async def test_the_grace_period_ends_what_is_still_running() -> None:
    async with running_cloud(grace_seconds=0.2) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(50)))
        await cloud.model.begun(1)
        draining = asyncio.create_task(cloud.drain())
        assert isinstance(await stream.error(), NotServing)
        cloud.model.run_freely()
        await draining
        assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE
