"""A cloud that sends damaged, hostile or contradictory messages costs no picture; the last good latents are used."""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import zstandard

from edge_client import EdgeClient, GenerationResult
from edge_client.request import GenerationRequest
from harness.reference import EDGE_MODEL, LATENTS_SHAPE
from harness.scripted_cloud import Script, Send, honest_opened, scripted_cloud, some_latents, step_with
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.errors import (
    Busy,
    CorruptTensor,
    EcdiffError,
    InvalidRequest,
    ModelError,
    NotServing,
    ProtocolError,
    Unauthenticated,
)
from wire.messages import (
    Codec,
    Description,
    Finished,
    Heartbeat,
    Open,
    Opened,
    Source,
    State,
    Step,
    Totals,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, GOOD_STEPS = 6, 2
LATENTS = [some_latents(LATENTS_SHAPE, seed) for seed in range(STEPS)]


@dataclass
class Liar:
    """A client, and the cloud that plays whatever script a test puts in."""

    client: EdgeClient
    description: Description
    script: Script

    async def play(self, opening: Open, send: Send) -> None:
        await self.script(opening, send)

    async def generate(self, script: Script, *, codec: str = "raw") -> GenerationResult:
        self.script = script
        options = PlanOptions(num_inference_steps=STEPS)
        request = GenerationRequest(prompt="a cat", mode="cloud", plan_options=options, latents_codec=codec)
        return await self.client.run(request)

    async def open(self, opening: Open, send: Send) -> None:
        await send(honest_opened(self.description, opening, latents_shape=LATENTS_SHAPE))

    async def start_well(self, opening: Open, send: Send) -> None:
        """Be honest for the first steps."""
        await self.open(opening, send)
        for index in range(GOOD_STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def liar(description: Description) -> AsyncIterator[Liar]:
    async def nothing(opening: Open, send: Send) -> None:
        raise AssertionError("no script")

    liar = Liar(client=EdgeClient(edge_model=str(EDGE_MODEL)), description=description, script=nothing)
    async with (
        scripted_cloud(description, liar.play) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60) as liar.client,
    ):
        yield liar


def check_taken_over(result: GenerationResult, reason: str, step: int, *, discarded: int = 0) -> None:
    report = result.report
    assert report["handoff"] == {"reason": reason, "step": step}
    assert report["step_sources"] == "C" * step + "e" * (STEPS - step)
    assert report["nfe"]["cloud_discarded"] == discarded
    (line,) = report["fallbacks"]
    assert line.startswith(reason.replace("_", " "))
    assert "\n" not in line
    assert np.isfinite(result.latents).all()
    (image,) = result.images
    assert image.size == (128, 128)


# ------------------------------------------------------------------------------ tensors


def with_data(tensor: pb.Tensor, array: np.ndarray[Any, Any]) -> None:
    tensor.data = array.tobytes()
    tensor.crc32 = zlib.crc32(tensor.data)


def nan(tensor: pb.Tensor) -> None:
    array = LATENTS[0].copy()
    array[0, 0, 0, 0] = np.nan
    with_data(tensor, array)


def infinity(tensor: pb.Tensor) -> None:
    with_data(tensor, np.full(LATENTS_SHAPE, np.inf, np.float32))


def another_shape(tensor: pb.Tensor) -> None:
    tensor.CopyFrom(step_with(some_latents((1, 4, 8, 8), 0)).step.latents)


def huge_shape(tensor: pb.Tensor) -> None:
    tensor.shape[:] = [65536] * 4
    tensor.raw_bytes = 4 * 65536**4 % 2**64


def half_precision(tensor: pb.Tensor) -> None:
    tensor.CopyFrom(step_with(LATENTS[0].astype(np.float16)).step.latents)


def truncated(tensor: pb.Tensor) -> None:
    tensor.data = tensor.data[:-4]


def flipped_bit(tensor: pb.Tensor) -> None:
    tensor.data = bytes([tensor.data[0] ^ 1]) + tensor.data[1:]


def bomb(tensor: pb.Tensor) -> None:
    tensor.codec = pb.CODEC_ZSTD
    tensor.data = zstandard.ZstdCompressor().compress(bytes(256 * 2**20))


def codec_not_agreed(tensor: pb.Tensor) -> None:
    tensor.codec = pb.CODEC_INT8_BLOCK


def other_numbers(tensor: pb.Tensor) -> None:
    tensor.scaling = pb.SCALING_UNIT_NOISE


TENSORS = [
    nan,
    infinity,
    another_shape,
    huge_shape,
    half_precision,
    truncated,
    flipped_bit,
    bomb,
    codec_not_agreed,
    other_numbers,
]


@pytest.mark.parametrize("damage", TENSORS, ids=lambda damage: damage.__name__.replace("_", "-"))
async def test_damaged_latents_cost_no_picture(liar: Liar, damage: Callable[[pb.Tensor], None]) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        step = step_with(LATENTS[GOOD_STEPS], GOOD_STEPS)
        if damage is bomb:
            assert opening.codecs[0] is Codec.ZSTD
        damage(step.step.latents)
        await send(step)
        await liar.start_well(opening, send)  # whatever comes after that is not read

    result = await liar.generate(script, codec="zstd" if damage is bomb else "raw")
    check_taken_over(result, "cloud_error", GOOD_STEPS)


@pytest.mark.parametrize(
    "fault",
    ["nan", "foreign-scheduler-state", "step-beyond-the-last", "step-that-was-never-sent", "before-the-plan-says"],
)
async def test_damaged_handoff_costs_no_picture(liar: Liar, fault: str) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        latents = step_with(LATENTS[GOOD_STEPS]).step.latents
        state = pb.State(step_index=STEPS - 1, latents=latents)
        match fault:
            case "nan":
                nan(state.latents)
            case "foreign-scheduler-state":
                state.scheduler_state["model_outputs"].CopyFrom(latents)
            case "step-beyond-the-last":
                state.step_index = STEPS + 1
            case "step-that-was-never-sent":
                state.step_index = GOOD_STEPS + 1
            case "before-the-plan-says":
                state.step_index = GOOD_STEPS
        await send(pb.ServerMessage(handed_off=pb.HandedOff(state=state, totals=pb.Totals())))

    check_taken_over(await liar.generate(script), "cloud_error", GOOD_STEPS)


# ------------------------------------------------------------------------------ messages

MESSAGES = {
    "empty": pb.ServerMessage(),
    "step-beyond-the-last": pb.ServerMessage(step=pb.Step(step_index=10**6, source=pb.SOURCE_CLOUD)),
    "step-of-no-known-source": pb.ServerMessage(step=pb.Step(step_index=GOOD_STEPS, source=99)),
    "endless-time": pb.ServerMessage(
        step=pb.Step(step_index=GOOD_STEPS, source=pb.SOURCE_CLOUD, compute_seconds=float("inf"))
    ),
    "endless-sum-of-times": pb.ServerMessage(
        step=pb.Step(step_index=GOOD_STEPS, source=pb.SOURCE_CLOUD, compute_seconds=1e308)
    ),
    "sent-at-no-time": pb.ServerMessage(step=pb.Step(step_index=GOOD_STEPS, source=pb.SOURCE_CLOUD, sent_at=1e300)),
    "step-of-the-edge": pb.ServerMessage(step=pb.Step(step_index=GOOD_STEPS, source=pb.SOURCE_EDGE)),
    "answer-to-no-ping": pb.ServerMessage(pong=pb.Pong(t0=1.0, t1=1.0, t2=1.0)),
    "bytes-of-no-message": b"\xff\xff\xff",
    "step-that-was-sent-before": step_with(LATENTS[3], 0),
    "step-too-early": step_with(LATENTS[3], GOOD_STEPS + 1),
    "finished-too-early": pb.ServerMessage(
        finished=pb.Finished(
            state=pb.State(step_index=GOOD_STEPS, latents=step_with(LATENTS[3]).step.latents), totals=pb.Totals()
        )
    ),
    "more-than-grpc-lets-in": pb.ServerMessage(fragment=pb.Fragment(total_bytes=2**23, data=bytes(5 * 2**20))),
    "fragment-of-a-terabyte": pb.ServerMessage(fragment=pb.Fragment(total_bytes=2**40, data=b"x" * 1000)),
    "fragments-of-garbage": pb.ServerMessage(fragment=pb.Fragment(total_bytes=1000, data=b"\xff" * 1000)),
    "end-without-state": pb.ServerMessage(handed_off=pb.HandedOff(totals=pb.Totals())),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
async def test_nonsense_costs_no_picture(
    liar: Liar, message: pb.ServerMessage | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "grpc")  # it writes a traceback for bytes that are no message

    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        await send(message)

    check_taken_over(await liar.generate(script), "cloud_error", GOOD_STEPS)


async def test_second_opened_costs_no_picture(liar: Liar) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        await liar.open(opening, send)

    result = await liar.generate(script)
    check_taken_over(result, "cloud_error", GOOD_STEPS)
    assert "opens the session a second time" in result.report["fallbacks"][0]


@pytest.mark.parametrize("name", ["step-with-latents", "fragment-of-a-terabyte", "more-than-grpc-lets-in", "empty"])
async def test_nonsense_before_opened_costs_no_picture(liar: Liar, name: str) -> None:
    message = step_with(LATENTS[0]) if name == "step-with-latents" else MESSAGES[name]

    async def script(opening: Open, send: Send) -> None:
        await send(message)

    check_taken_over(await liar.generate(script), "cloud_error", 0)


OPENED: dict[str, dict[str, Any]] = {
    "codec-not-offered": {"codec": Codec.INT8_BLOCK},
    "scheduler-not-allowed": {"scheduler_class": "subprocess.Popen"},
    "scheduler-config-of-wrong-types": {"scheduler_config": '{"beta_start": "rm -rf"}'},
    "other-latents": {"latents_shape": (1, 4, 32, 32)},
    "timesteps-of-another-schedule": {"timesteps": tuple(float(step) for step in range(STEPS))},
    "one-step-less": {"timesteps": (801.0, 601.0, 401.0, 201.0, 1.0), "sigmas": (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)},
    "another-version-than-described": {"protocol_version": 99},
    "fewer-steps": {"timesteps": (801.0,), "sigmas": (1.0, 0.0)},
}


@pytest.mark.parametrize("changes", OPENED.values(), ids=OPENED)
async def test_unusable_opened_costs_no_picture(liar: Liar, changes: dict[str, Any]) -> None:
    async def script(opening: Open, send: Send) -> None:
        opened: Opened = honest_opened(liar.description, opening, latents_shape=LATENTS_SHAPE)
        await send(replace(opened, **changes))
        await send(Step(step_index=0, source=Source.CLOUD, latents=LATENTS[0]))

    check_taken_over(await liar.generate(script), "cloud_error", 0)


# ------------------------------------------------------------------------------ statuses


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


@pytest.mark.parametrize("stamp", [math.nan, math.inf, -1.0, 1e308])
async def test_nonsense_time_stamps_cost_no_picture_and_no_metric(liar: Liar, stamp: float) -> None:
    async def play(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        await asyncio.sleep(0.2)  # probes are under way by now
        raise ModelError("enough")

    async with (
        scripted_cloud(liar.description, play, stamps=lambda: stamp) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client,
    ):
        options = PlanOptions(num_inference_steps=STEPS)
        result = await client.run(GenerationRequest(prompt="a cat", mode="cloud", plan_options=options))
        with pytest.raises(ProtocolError, match="which is no time"):
            await (await client.reach_cloud()).probe()
    check_taken_over(result, "cloud_error", GOOD_STEPS)
    assert result.report["network"]["clock_offset_seconds"] == 0.0
