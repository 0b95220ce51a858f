"""A cloud that sends hostile or contradictory messages costs no picture; the last good latents are used."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
from liar_harness import GOOD_STEPS, LATENTS, STEPS, Liar, check_taken_over

from edge_client import EdgeClient
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.reference import EDGE_MODEL, LATENTS_SHAPE
from harness.scripted_cloud import Send, honest_opened, scripted_cloud, step_with
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.errors import ModelError, ProtocolError
from wire.messages import Codec, Open, Opened, Source, Step

pytestmark = pytest.mark.asyncio(loop_scope="session")


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


async def test_what_nobody_expects_while_reading_is_told_and_costs_no_picture(
    liar: Liar, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller's progress display fails: it is called wherever a message is taken in."""
    failures = 0

    def on_progress(snapshot: Snapshot) -> None:
        nonlocal failures
        if len(snapshot.step_sources) == GOOD_STEPS and not failures:
            failures += 1
            raise RuntimeError("the display is gone")

    async def play(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        await asyncio.sleep(60)

    liar.script = play
    request = GenerationRequest(prompt="a cat", mode="cloud", plan_options=PlanOptions(num_inference_steps=STEPS))
    result = await liar.client.run(request, on_progress)
    check_taken_over(result, "cloud_error", GOOD_STEPS)
    assert "RuntimeError: the display is gone" in result.report["fallbacks"][0]
    (told,) = [record for record in caplog.records if record.exc_info]
    assert "the display is gone" in str(told.exc_info)
