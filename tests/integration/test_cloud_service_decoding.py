"""When a Decode may be sent, and what it is answered with."""

from __future__ import annotations

import numpy as np
import pytest
from cloud_harness import Stream, always, open_channel, opening, running_cloud

from wire.errors import InvalidTensor, ProtocolError
from wire.messages import Close, Decode, Decoded, Finished, HandedOff, HandOff

LATENTS = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)


async def test_a_parked_session_decodes_once() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(4)))
        await stream.receive_until(Finished)
        await stream.send(Decode(latents=LATENTS))
        stream.expect_pixels((1, 128, 128, 3))
        (decoded,) = await stream.receive_until(Decoded)
        assert decoded.pixels.dtype == np.uint8
        assert decoded.compute_seconds > 0
        await stream.send(Decode(latents=LATENTS))
        assert isinstance(await stream.error(), ProtocolError)


async def test_a_decode_behind_a_hand_off_waits_for_the_end_of_the_trajectory() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(8)))
        await cloud.model.begun(1)
        await stream.send(HandOff())
        await stream.send(Decode(latents=LATENTS))
        stream.expect_pixels((1, 128, 128, 3))
        cloud.model.run_freely()
        kinds = [type(each) for each in await stream.receive_until(Decoded)]
        assert kinds.index(HandedOff) < kinds.index(Decoded)
        await stream.send(Close())
        await stream.ends_ok()


async def test_a_decode_before_any_hand_off_ends_the_session() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(8)))
        await cloud.model.begun(1)
        await stream.send(Decode(latents=LATENTS))
        cloud.model.run_freely()
        assert isinstance(await stream.error(), ProtocolError)


@pytest.mark.parametrize("latents", [LATENTS[:, :, :8], np.full_like(LATENTS, 0)[:, :3]])
async def test_latents_of_another_shape_are_refused(latents) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(4)))
        await stream.receive_until(Finished)
        await stream.send(Decode(latents=np.ascontiguousarray(latents)))
        assert isinstance(await stream.error(), InvalidTensor)
