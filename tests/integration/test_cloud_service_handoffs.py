"""Where a stream's steps stop, what the state that it hands off is good for, and corrections after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cloud_harness import Stream, always, open_channel, opening, running_cloud

from diffusion.model import Evaluation
from wire.messages import Close, Correct, Correction, HandedOff, HandOff, Ping, Pong, State


@pytest.mark.parametrize(("announced", "ends"), [(7, 7), (2, 4), (40, 10)], ids=["ahead", "past", "after the plan's"])
async def test_an_announced_hand_off_stops_there_or_at_once_or_at_the_plan(announced: int, ends: int) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(replace(always(50), handoff_step=10)))
        cloud.model.permit(3)
        await cloud.model.begun(4)
        await stream.send(HandOff(step_index=announced))
        await stream.send(Ping(t0=1.0))
        await stream.receive_until(Pong)  # so the HandOff has arrived
        cloud.model.run_freely()
        *_, ending = await stream.receive_until(HandedOff)
        assert ending.state.step_index == ending.totals.nfe_cloud == cloud.model.num_begun == ends
        await stream.send(Close())
        await stream.ends_ok()


async def test_hand_off_stops_before_the_next_step_and_corrections_are_answered() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(50), guidance_scale=4.0))
        cloud.model.permit(3)
        await cloud.model.begun(4)
        await stream.send(HandOff())
        await stream.send(Ping(t0=1.0))
        await stream.receive_until(Pong)  # so the HandOff has arrived
        cloud.model.permit()
        *_, ending = await stream.receive_until(HandedOff)
        assert ending.state.step_index == 4
        assert ending.totals.nfe_cloud == 4
        assert cloud.model.num_begun == 4

        cloud.model.run_freely()
        latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
        await stream.send(Correct(step_index=30, latents=latents))
        (correction,) = await stream.receive_until(Correction)
        model = cloud.model
        with torch.inference_mode():
            (direct,) = model.evaluate(
                [
                    Evaluation(
                        latents=torch.from_numpy(latents),
                        timestep=19 * 20 + 1.0,
                        conditioning=model.encode_prompt("a red apple", guided=True),
                        guidance_scale=4.0,
                    )
                ]
            )
        assert correction.step_index == 30
        assert np.allclose(correction.prediction, direct.numpy(), atol=1e-5)
        assert cloud.sample("ecdiff_nfe_total", source="correction") == 1
        assert cloud.sample("ecdiff_corrections_total", outcome="answered") == 1
        await stream.send(Close())
        await stream.ends_ok()
        assert cloud.sample("ecdiff_cloud_sessions") == 0


async def test_hand_off_right_after_open_gives_the_start_state() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        cloud.model.pace()
        await stream.send(opening(always(10)))
        await stream.send(HandOff())
        cloud.model.permit()
        _, steps, ending = await stream.receive_steps()
        assert len(steps) <= 1
        assert ending.state.step_index == len(steps)


async def test_a_handoff_step_of_zero_needs_no_evaluation() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(10, handoff_step=0), want_prompt_embeds=True))
        opened, steps, ending = await stream.receive_steps()
        assert steps == []
        assert ending.state.step_index == 0
        assert cloud.model.num_begun == 0
        assert opened.prompt_embeds.prompt_embeds.shape == opened.prompt_embeds.negative_prompt_embeds.shape


async def test_a_resumed_trajectory_ends_where_the_uninterrupted_one_does() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        whole, first, second = Stream(stub), Stream(stub), Stream(stub)
        await whole.send(opening(always(8)))
        _, _, reference = await whole.receive_steps()
        await first.send(opening(always(8, handoff_step=5)))
        _, _, half = await first.receive_steps()
        state = State(step_index=half.state.step_index, latents=half.state.latents)
        await second.send(opening(always(8), start=state))
        _, steps, ending = await second.receive_steps()
        assert [step.step_index for step in steps] == [5, 6, 7]
        assert np.array_equal(ending.state.latents, reference.state.latents)


async def test_a_client_that_half_closes_gets_everything_up_to_the_handoff() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(5, handoff_step=3)))
        await stream.call.done_writing()
        _, steps, ending = await stream.receive_steps()
        assert len(steps) == 3
        assert ending.state.step_index == 3
        await stream.ends_ok()
