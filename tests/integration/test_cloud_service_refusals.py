"""What a service refuses: each bad request ends its own stream, with the reason in the status."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
import zstandard
from cloud_harness import Cloud, Stream, always, open_channel, opening, running_cloud

from cloud_service.config import LOGGER_NAME, Timings
from cloud_service.memory import BatchCost, HostMemory
from protos import ecdiff_v1_pb2 as pb
from wire.convert import encode_client
from wire.errors import (
    CorruptTensor,
    DeadlineExceeded,
    EcdiffError,
    InvalidRequest,
    InvalidTensor,
    LimitExceeded,
    ProtocolError,
    UnknownModel,
    VersionMismatch,
)
from wire.messages import (
    Codec,
    Correct,
    Credit,
    Finished,
    HandedOff,
    Noise,
    Plan,
    PromptEmbeds,
    PromptText,
    State,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_cloud() -> AsyncIterator[Cloud]:
    async with running_cloud() as cloud:
        yield cloud


def with_embeds(shape: tuple[int, ...]) -> PromptEmbeds:
    embeds = np.zeros(shape, np.float32)
    return PromptEmbeds(prompt_embeds=embeds, negative_prompt_embeds=embeds)


NOISE = np.zeros((1, 4, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"protocol_version": 99}, VersionMismatch, "99"),
        ({"model": "deadbeef"}, UnknownModel, "deadbeef"),
        ({"plan": always(1001)}, LimitExceeded, "1001"),
        ({"height": 4096}, LimitExceeded, "4096"),
        ({"width": 4096}, LimitExceeded, "4096"),
        ({"num_images": 9}, LimitExceeded, "9"),
        ({"conditioning": PromptText(prompt="x" * 2001)}, LimitExceeded, "2001"),
        ({"height": 100}, InvalidRequest, "multiple"),
        ({"scheduler": "heun"}, InvalidRequest, "ddim"),
        ({"plan": Plan(num_inference_steps=4, handoff_step=4, refresh="whim")}, InvalidRequest, "whim"),
        ({"plan": Plan(num_inference_steps=4, handoff_step=4, predictor="crystal")}, InvalidRequest, "crystal"),
        (
            {"plan": Plan(num_inference_steps=4, handoff_step=4, tolerance=0.1)},
            InvalidRequest,
            "tolerance means nothing",
        ),
        ({"plan": Plan(num_inference_steps=4, handoff_step=4, refresh="listed")}, InvalidRequest, "must begin with 0"),
        (
            {"plan": Plan(num_inference_steps=4, handoff_step=4, max_cloud_calls=3)},
            InvalidRequest,
            "needs 4 cloud calls but max_cloud_calls is 3",
        ),
        ({"codecs": ()}, InvalidRequest, "codec"),
        ({"start": Noise(noise=NOISE[:, :3])}, InvalidTensor, "shape"),
        ({"start": State(step_index=3, latents=NOISE), "plan": always(4, 2)}, InvalidRequest, "behind"),
        ({"start": State(step_index=1, latents=NOISE, scheduler_state={"m": NOISE})}, InvalidRequest, "history"),
        ({"conditioning": with_embeds((1, 77, 8))}, InvalidTensor, "shape"),
        ({"conditioning": PromptEmbeds(prompt_embeds=np.zeros((1, 77, 16), np.float32))}, InvalidRequest, "negative"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_with_its_reason(
    shared_cloud: Cloud, fields: dict, error: type[EcdiffError], words: str
) -> None:
    async with open_channel(shared_cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(**({"plan": always(4)} | fields)))
        refusal = await stream.error()
        assert type(refusal) is error
        assert words in str(refusal)
    assert shared_cloud.sample("ecdiff_cloud_sessions") == 0


@pytest.mark.grpc_only("looks into the service's process")
async def test_latents_that_do_not_fit_the_memory_that_is_free_are_refused(
    shared_cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = shared_cloud.server.backend._service.served
    assert served is not None
    # As if the start had found that each further picture takes a petabyte.
    narrow = replace(served, memory=HostMemory(), batch_cost=BatchCost(held_bytes=0, first_bytes=1, more_bytes=2**50))
    monkeypatch.setattr(shared_cloud.server.backend._service, "served", narrow)
    async with open_channel(shared_cloud.address) as stub:
        large = Stream(stub)
        await large.send(opening(always(2), num_images=8))
        refusal = await large.error()
        assert isinstance(refusal, LimitExceeded)
        assert "take more memory than is free here" in str(refusal)
        usual = Stream(stub)
        await usual.send(opening(always(2)))
        await usual.receive_until(Finished)


def poisoned(kind: str) -> pb.ClientMessage:
    codec = Codec.ZSTD if kind == "bomb" else Codec.RAW
    message = encode_client(opening(always(4), start=Noise(noise=NOISE)), codec=codec)
    noise = message.open.start.noise
    if kind == "nan":
        array = NOISE.copy()
        array[0, 0, 0, 0] = np.nan
        noise.data = array.tobytes()
    elif kind == "truncated":
        noise.data = noise.data[:-1]
    elif kind == "checksum":
        noise.crc32 ^= 1
    elif kind == "bomb":
        noise.data = zstandard.ZstdCompressor().compress(bytes(2**26))
    return message


@pytest.mark.parametrize("kind", ["nan", "truncated", "checksum", "bomb"])
async def test_a_poisoned_tensor_ends_its_session_only(shared_cloud: Cloud, kind: str) -> None:
    async with open_channel(shared_cloud.address) as stub:
        good, bad = Stream(stub), Stream(stub)
        await good.send(opening(always(4)))
        await bad.send_raw(poisoned(kind))
        assert isinstance(await bad.error(), CorruptTensor)
        await good.receive_until(Finished)


async def test_messages_out_of_place_end_the_stream(shared_cloud: Cloud) -> None:
    async with open_channel(shared_cloud.address) as stub:
        for messages in (
            [Credit(count=1)],
            [opening(always(400)), opening(always(400))],
            [opening(always(400)), Correct(step_index=0, latents=NOISE)],
        ):
            stream = Stream(stub)
            for message in messages:
                await stream.send(message)
            assert isinstance(await stream.error(), ProtocolError)
        stream = Stream(stub)
        await stream.call.done_writing()
        assert isinstance(await stream.error(), ProtocolError)
        stream = Stream(stub)
        await stream.send(opening(always(4, handoff_step=0)))
        await stream.receive_until(HandedOff)
        await stream.send(Correct(step_index=4, latents=NOISE))
        assert isinstance(await stream.error(), InvalidRequest)


@pytest.mark.grpc_only("reads the log in the service's process")
async def test_a_refusal_is_logged_under_the_id_of_its_request(
    shared_cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)
    async with open_channel(shared_cloud.address) as stub:
        for request_id, fields in (("much", {"num_images": 9}), ("unknown", {"model": "deadbeef"})):
            stream = Stream(stub)
            await stream.send(opening(**{"plan": always(4), "request_id": request_id} | fields))
            await stream.error()
    refused = [record for record in caplog.records if record.getMessage() == "session refused"]
    assert [record.request_id for record in refused] == ["much", "unknown"]


async def test_a_stream_without_open_is_not_kept() -> None:
    async with running_cloud(timings=Timings(open_seconds=0.1)) as cloud, open_channel(cloud.address) as stub:
        assert isinstance(await Stream(stub).error(), DeadlineExceeded)
