"""When a Correct may be sent: from the client's own HandOff on, parked or not yet."""

from __future__ import annotations

import numpy as np
from cloud_harness import Cloud, Stream, always, open_channel, opening, running_cloud

from wire.errors import ProtocolError
from wire.messages import (
    ClientMessage,
    Close,
    Correct,
    Correction,
    HandedOff,
    HandOff,
    Opened,
    Ping,
    Pong,
    ServerMessage,
    Step,
)

LATENTS = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
CORRECT = Correct(step_index=3, latents=LATENTS)


async def arrived(stream: Stream, *messages: ClientMessage) -> list[ServerMessage]:
    """Send `messages`, wait until the service has taken them, and return what it said meanwhile."""
    for message in (*messages, Ping(t0=1.0)):
        await stream.send(message)
    return (await stream.receive_until(Pong))[:-1]


async def prediction_once_parked(cloud: Cloud, stream: Stream) -> np.ndarray:
    """Return the answer to CORRECT of a session that is parked."""
    await stream.send(CORRECT)
    (correction,) = await stream.receive_until(Correction)
    await stream.send(Close())
    await stream.ends_ok()
    assert cloud.sample("ecdiff_corrections_total", outcome="answered") == 2
    return correction.prediction


async def test_a_correct_right_behind_a_hand_off_is_answered_once_the_session_is_parked() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(8)))
        await cloud.model.begun(1)
        # The device is at step 0.
        said = await arrived(stream, HandOff(), CORRECT)
        assert [type(each) for each in said] == [Opened]
        cloud.model.run_freely()
        step, ending, correction = await stream.receive_until(Correction)
        assert (step.step_index, ending.state.step_index) == (0, 1)
        assert isinstance(ending, HandedOff)
        assert ending.totals.nfe_correction == 0
        assert correction.step_index == 3
        assert cloud.model.num_begun == 2
        assert np.array_equal(correction.prediction, await prediction_once_parked(cloud, stream))


async def test_a_correct_is_answered_of_a_session_that_waits_for_its_prompt_to_be_encoded() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        other, stream = Stream(stub), Stream(stub)
        await other.send(opening(always(2)))
        await cloud.model.begun(1)
        assert await arrived(stream, opening(always(8)), HandOff(), CORRECT) == []
        cloud.model.run_freely()
        opened, ending, correction = await stream.receive_until(Correction)
        assert isinstance(opened, Opened)
        assert ending.state.step_index == 0
        assert np.array_equal(correction.prediction, await prediction_once_parked(cloud, stream))


async def test_a_hand_off_and_a_correct_that_the_plans_own_handoff_overtakes_are_answered() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(8, handoff_step=2)))
        cloud.model.permit()
        await cloud.model.begun(2)
        # The device is at the last step before the plan's handoff, which takes effect whatever the client says.
        await arrived(stream, HandOff(), CORRECT)
        cloud.model.run_freely()
        *_, step, ending, correction = await stream.receive_until(Correction)
        assert isinstance(step, Step)
        assert ending.state.step_index == 2
        assert np.array_equal(correction.prediction, await prediction_once_parked(cloud, stream))


async def test_a_correct_without_hand_off_before_the_plans_end_ends_the_stream() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(8, handoff_step=2)))
        cloud.model.permit()
        await cloud.model.begun(2)
        # The device is at the last step before the plan's handoff.
        await stream.send(CORRECT)
        assert isinstance(await stream.error(), ProtocolError)
        assert cloud.sample("ecdiff_corrections_total", outcome="answered") == 0
