"""The cloud goes, or lies, after the handoff and between corrections: the edge finishes, and says so once."""

from __future__ import annotations

import asyncio
import signal
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from adaptive_harness import PATIENT_SECONDS, a_request, check_report, tiny_edge

from bench.network import EmulatedNetwork, Link
from edge_client import EdgeClient, GenerationResult
from edge_client.recorder import Snapshot
from harness.cloud import StartCloud
from harness.reference import EDGE_MODEL, LATENTS_SHAPE
from harness.scripted_cloud import (
    Receive,
    Send,
    conversing_cloud,
    honest_opened,
    scripted_cloud,
    some_latents,
)
from harness.searched import STEPS, plan_file, searched
from protos import ecdiff_v1_pb2 as pb
from wire.convert import encode_server
from wire.messages import (
    Codec,
    Correct,
    Correction,
    Description,
    HandedOff,
    Heartbeat,
    Open,
    Source,
    State,
    Step,
    Totals,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

SILENCE_SECONDS = 2.0
HANDOFF_STEP = 5
PLAN = searched(range(HANDOFF_STEP), HANDOFF_STEP, correction_steps=(6, 8, 9, 10, 11))


def write_plan(folder: Path, description: Description) -> Path:
    path = folder / "plans.json"
    plan_file(description, tiny_edge().info.fingerprint, PLAN).write(path)
    return path


class Between:
    """A progress callback that does something once the first correction has been run."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.fired_at = 0.0

    def __call__(self, snapshot: Snapshot) -> None:
        if not self.fired_at and len(snapshot.step_sources) == 7:
            self.fired_at = time.perf_counter()
            self._action()


def check_finished_alone(result: GenerationResult, *, corrected: list[int], unanswered: int) -> str:
    """The edge used these corrections, asked for one more in vain and then for none; return what it says of it."""
    report = result.report
    check_report(report)
    assert report["handoff"] == {"reason": "plan", "step": HANDOFF_STEP}
    assert report["step_sources"] == "C" * HANDOFF_STEP + "e" * (STEPS - HANDOFF_STEP)
    assert report["corrections"]["steps"] == corrected
    assert report["corrections"]["skipped"] == [{"step": unanswered, "reason": "cloud_lost"}]
    assert np.isfinite(result.latents).all()
    (line,) = report["fallbacks"]
    assert line.startswith("the cloud was lost after the handoff (")
    assert line.endswith("): the edge finishes without corrections")
    return str(line)


@pytest.mark.parametrize("fault", ["kill", "freeze", "reset", "blackhole"])
async def test_cloud_lost_between_corrections_costs_no_picture_and_one_patience(
    start_cloud: StartCloud, description: Description, tmp_path: Path, fault: str
) -> None:
    cloud, is_silent = start_cloud(), fault in ("freeze", "blackhole")
    # Held, so that no answer is quicker than the fault.
    cloud.unet.hold_after(HANDOFF_STEP + 1)
    async with EmulatedNetwork(cloud.address, Link()) as network:
        faults: dict[str, Callable[[], object]] = {
            "kill": lambda: cloud.program.signal(signal.SIGKILL),
            "freeze": lambda: cloud.program.signal(signal.SIGSTOP),
            "reset": network.reset,
            "blackhole": network.blackhole,
        }
        trigger = Between(faults[fault])
        silence_seconds = SILENCE_SECONDS if is_silent else PATIENT_SECONDS
        async with EdgeClient(
            cloud=network.address, edge_model=str(EDGE_MODEL), silence_seconds=silence_seconds
        ) as client:
            request = a_request(write_plan(tmp_path, description), handoff_step=HANDOFF_STEP)
            result = await client.run(request, trigger)
            elapsed = time.perf_counter() - trigger.fired_at
    line = check_finished_alone(result, corrected=[6], unanswered=8)
    assert ("nothing heard from the cloud for 2 s" in line) == is_silent
    # Each of the four corrections in vain would cost the patience once more.
    assert elapsed < 3 * SILENCE_SECONDS


async def test_same_client_reaches_a_new_cloud_after_a_loss_between_corrections(
    start_cloud: StartCloud, description: Description, tmp_path: Path
) -> None:
    dying, living = start_cloud(), start_cloud()
    dying.unet.hold_after(HANDOFF_STEP + 1)
    request = a_request(write_plan(tmp_path, description), handoff_step=HANDOFF_STEP)
    async with EdgeClient(cloud=f"{dying.address},{living.address}", edge_model=str(EDGE_MODEL)) as client:
        first = await client.run(request, Between(lambda: dying.program.signal(signal.SIGKILL)))
        second = await client.run(request)
    check_finished_alone(first, corrected=[6], unanswered=8)
    assert second.report["corrections"]["steps"] == [6, 8, 9, 10, 11]
    assert second.report["fallbacks"] == []


# ------------------------------------------------------------------------------ a cloud that lies

LATENTS = [some_latents(LATENTS_SHAPE, seed) for seed in range(HANDOFF_STEP)]
STATE = State(step_index=HANDOFF_STEP, latents=LATENTS[-1])
Answer = Callable[[Correct, Send], Awaitable[None]]


async def generate(
    description: Description, folder: Path, answer: Answer, *, step_seconds: float = 120.0
) -> GenerationResult:
    """Run against a cloud that is honest up to the handoff, and gives this answer to the first correction."""

    async def script(opening: Open, send: Send, receive: Receive) -> None:
        await send(honest_opened(description, opening, latents_shape=LATENTS_SHAPE))
        for index, latents in enumerate(LATENTS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=latents))
        await send(HandedOff(state=STATE, totals=Totals()))
        correct = await receive()
        assert isinstance(correct, Correct)
        await answer(correct, send)
        await receive()

    # Without the shadow, so that the made-up steps need no predictions.
    request = a_request(write_plan(folder, description), handoff_step=HANDOFF_STEP, shadow=False)
    async with (
        conversing_cloud(description, script) as address,
        EdgeClient(
            cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=PATIENT_SECONDS, step_seconds=step_seconds
        ) as client,
    ):
        return await client.run(request)


def correction(step_index: int, shape: tuple[int, ...] = LATENTS_SHAPE) -> pb.ServerMessage:
    message = Correction(
        step_index=step_index, prediction=some_latents(shape, 9), compute_seconds=0.0, queue_seconds=0.0
    )
    return encode_server(message, codec=Codec.RAW)


async def of_another_step(correct: Correct, send: Send) -> None:
    await send(correction(correct.step_index + 1))


async def of_another_shape(correct: Correct, send: Send) -> None:
    await send(correction(correct.step_index, (1, 4, 8, 8)))


async def with_nan(correct: Correct, send: Send) -> None:
    message = correction(correct.step_index)
    tensor = message.correction.prediction
    tensor.data = np.full(LATENTS_SHAPE, np.nan, np.float32).tobytes()
    tensor.crc32 = zlib.crc32(tensor.data)
    await send(message)


async def second_handoff(correct: Correct, send: Send) -> None:
    await send(HandedOff(state=STATE, totals=Totals()))


async def step_after_the_handoff(correct: Correct, send: Send) -> None:
    await send(Step(step_index=HANDOFF_STEP, source=Source.CLOUD, latents=LATENTS[0]))


LIES: dict[Answer, str] = {
    of_another_step: "the cloud corrects step 7, for which nobody asked",
    of_another_shape: "shape",
    with_nan: "prediction holds NaN",
    second_handoff: "the cloud hands off a second time, at step 5",
    step_after_the_handoff: "the cloud sent step 5 after its handoff",
}


@pytest.mark.parametrize(("answer", "words"), LIES.items(), ids=[lie.__name__ for lie in LIES])
async def test_lie_after_the_handoff_costs_no_picture(
    description: Description, tmp_path: Path, answer: Answer, words: str
) -> None:
    result = await generate(description, tmp_path, answer)
    line = check_finished_alone(result, corrected=[], unanswered=6)
    assert words in line
    assert result.report["nfe"]["cloud"] == HANDOFF_STEP
    assert result.report["nfe"]["corrections"] == 0


async def test_second_answer_to_one_question_is_not_counted(description: Description, tmp_path: Path) -> None:
    async def twice(correct: Correct, send: Send) -> None:
        await send(correction(correct.step_index))
        await send(correction(correct.step_index))

    result = await generate(description, tmp_path, twice)
    line = check_finished_alone(result, corrected=[6], unanswered=8)
    assert "the cloud corrects step 6, for which nobody asked" in line
    assert result.report["nfe"]["corrections"] == 1


async def test_device_that_hangs_at_a_correction_behind_a_living_service_is_given_up(
    description: Description, tmp_path: Path
) -> None:
    async def heartbeats(correct: Correct, send: Send) -> None:
        for _ in range(20):
            await send(Heartbeat(queue_position=0))
            await asyncio.sleep(0.2)

    result = await generate(description, tmp_path, heartbeats, step_seconds=1.0)
    line = check_finished_alone(result, corrected=[], unanswered=6)
    assert "the cloud has made no step for 1 s" in line


async def test_cloud_that_is_gone_before_the_first_correction_is_told_of(
    description: Description, tmp_path: Path
) -> None:
    async def script(opening: Open, send: Send) -> None:
        await send(honest_opened(description, opening, latents_shape=LATENTS_SHAPE))
        for index, latents in enumerate(LATENTS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=latents))
        await send(HandedOff(state=STATE, totals=Totals()))

    request = a_request(write_plan(tmp_path, description), handoff_step=HANDOFF_STEP, shadow=False)
    async with (
        scripted_cloud(description, script) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=PATIENT_SECONDS) as client,
    ):
        result = await client.run(request)
    check_finished_alone(result, corrected=[], unanswered=6)
