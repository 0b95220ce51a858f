"""The cloud dies, freezes or is cut off at a chosen step: the edge finishes the picture.

The cloud is held before the evaluation of the chosen step, so the fault comes at that step on any machine. Where all
that the cloud did has arrived, the result must be the very trajectory that "so many cloud steps, then the edge" gives.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.network import EmulatedNetwork, Link
from edge_client import EdgeClient, GenerationResult
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, StartCloud
from harness.programs import Programs
from harness.reference import EDGE_MODEL, TOLERANCE, ReferencePair, distance
from harness.waiting import eventually, running
from orchestrator.plan import PlanOptions

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Where silence is the only sign of the loss.
SHORT_SILENCE_SECONDS = 2.0
# Where the loss shows at once, so that a busy machine is never taken for a lost cloud.
LONG_SILENCE_SECONDS = 60.0
STEPS = 20
PLANNED = {
    "cloud": "C" * 20,
    "split": "C" * 16 + "e" * 4,
    "ecdiff": "CCCxxCxxCxxCxxC" + "e" * 5,
}
OPTIONS = {
    "cloud": PlanOptions(num_inference_steps=STEPS),
    "split": PlanOptions(num_inference_steps=STEPS, handoff_step=16),
    "ecdiff": PlanOptions(
        num_inference_steps=STEPS, handoff_step=15, warmup_steps=3, skip_interval=2, smoothing=0.3, predictor="ecdiff"
    ),
}
# Before the first latents, in the warm-up, in the middle (ecdiff: the newest step is an extrapolated one), and one
# step before the cloud would have handed off or finished.
FAULT_STEPS = {"cloud": (0, 2, 11, 19), "split": (0, 2, 11, 15), "ecdiff": (0, 2, 11, 14)}
MATRIX = [(mode, step) for mode, steps in FAULT_STEPS.items() for step in steps]
DEFAULT_RUN = {("cloud", 19), ("split", 0), ("ecdiff", 2), ("ecdiff", 11)}


def a_request(mode: str) -> GenerationRequest:
    return GenerationRequest(prompt="a cat", mode=mode, plan_options=OPTIONS[mode], guidance_scale=7.5, seed=5)


def matrix(*, default_run: set[tuple[str, int]]) -> list[Any]:
    return [
        pytest.param(mode, step, id=f"{mode}-{step}", marks=() if (mode, step) in default_run else pytest.mark.slow)
        for mode, step in MATRIX
    ]


@dataclass
class At:
    """A progress callback that does something when `step` steps of the cloud have arrived; keeps the notes."""

    step: int
    action: Callable[[], object]
    fired: bool = False
    notes: list[str] = field(default_factory=list)

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.note:
            self.notes.append(snapshot.note)
        if not self.fired and snapshot.phase == "cloud" and len(snapshot.step_sources) == self.step:
            self.fired = True
            self.action()


def hold_before(cloud: Cloud, mode: str, step: int) -> None:
    """Let the cloud do every step before `step`, and no evaluation from there on."""
    cloud.unet.hold_after(PLANNED[mode][:step].count("C"))


def edge_client(address: str, *, silent_fault: bool = False) -> EdgeClient:
    silence_seconds = SHORT_SILENCE_SECONDS if silent_fault else LONG_SILENCE_SECONDS
    return EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=silence_seconds)


async def generate_with_fault(
    address: str, mode: str, step: int, fault: Callable[[], object], *, silent_fault: bool = False
) -> tuple[GenerationResult, At]:
    trigger = At(step, fault)
    async with edge_client(address, silent_fault=silent_fault) as client:
        result = await client.run(a_request(mode), trigger)
    assert trigger.fired, trigger.notes
    return result, trigger


def check_taken_over(result: GenerationResult, trigger: At, pair: ReferencePair, mode: str, step: int) -> None:
    """The edge went on from exactly `step`, said so, and the numbers are those of that trajectory."""
    report = result.report
    sources = PLANNED[mode][:step] + "e" * (STEPS - step)
    assert report["step_sources"] == sources
    assert report["handoff"] == {"reason": "cloud_lost", "step": step}
    assert report["handoff_step"] == step
    assert report["nfe"]["cloud"] == sources.count("C")
    assert report["nfe"]["cloud_discarded"] == 0
    assert report["nfe"]["extrapolated"] == sources.count("x")
    assert report["nfe"]["edge"] == STEPS - step
    (line,) = report["fallbacks"]
    assert line.startswith("cloud lost (")
    assert line.endswith(f"the edge goes on from step {step} of {STEPS}")
    assert trigger.notes == [line]
    (image,) = result.images
    assert image.size == (128, 128)
    plan = a_request(mode).plan
    reference = pair.final_latents(sources, prompt="a cat", guidance_scale=7.5, seed=5, plan=plan)
    assert distance(result.latents, reference) < TOLERANCE


@pytest.mark.parametrize(("mode", "step"), matrix(default_run=DEFAULT_RUN))
async def test_killed_cloud_costs_no_picture(
    start_cloud: StartCloud, pair: ReferencePair, mode: str, step: int
) -> None:
    cloud = start_cloud()
    hold_before(cloud, mode, step)
    result, trigger = await generate_with_fault(cloud.address, mode, step, lambda: cloud.program.signal(signal.SIGKILL))
    check_taken_over(result, trigger, pair, mode, step)


@pytest.mark.parametrize(("mode", "step"), matrix(default_run={("cloud", 11), ("split", 15), ("ecdiff", 14)}))
async def test_frozen_cloud_costs_no_picture(
    start_cloud: StartCloud, pair: ReferencePair, mode: str, step: int
) -> None:
    cloud = start_cloud()
    hold_before(cloud, mode, step)
    result, trigger = await generate_with_fault(
        cloud.address, mode, step, lambda: cloud.program.signal(signal.SIGSTOP), silent_fault=True
    )
    check_taken_over(result, trigger, pair, mode, step)
    assert f"nothing heard from the cloud for {SHORT_SILENCE_SECONDS:g} s" in trigger.notes[0]


async def test_cloud_that_thaws_forgets_the_session_and_serves_again(start_cloud: StartCloud) -> None:
    cloud = start_cloud()
    hold_before(cloud, "ecdiff", 5)
    result, _ = await generate_with_fault(
        cloud.address, "ecdiff", 5, lambda: cloud.program.signal(signal.SIGSTOP), silent_fault=True
    )
    assert result.report["handoff"]["reason"] == "cloud_lost"
    cloud.program.signal(signal.SIGCONT)
    cloud.unet.open()
    await eventually(cloud.is_empty, "the session of the lost edge to be gone")
    async with edge_client(cloud.address) as client:
        again = await client.run(a_request("ecdiff"))
    assert again.report["step_sources"] == PLANNED["ecdiff"]
    assert again.report["fallbacks"] == []


async def test_cloud_killed_before_it_opened_the_session_costs_no_picture(
    start_cloud: StartCloud, pair: ReferencePair
) -> None:
    cloud = start_cloud()
    cloud.text_encoder.hold_after(0)
    async with edge_client(cloud.address) as client:
        trigger = At(-1, lambda: None)
        async with running(client.run(a_request("split"), trigger)) as generation:
            await eventually(lambda: cloud.text_encoder.holding, "the cloud to encode the prompt")
            cloud.program.signal(signal.SIGKILL)
            result = await generation
    check_taken_over(result, trigger, pair, "split", 0)


async def test_same_client_reaches_a_new_cloud_after_a_loss(start_cloud: StartCloud) -> None:
    dying, living = start_cloud(), start_cloud()
    hold_before(dying, "split", 3)
    async with edge_client(f"{dying.address},{living.address}") as client:
        first = await client.run(a_request("split"), At(3, lambda: dying.program.signal(signal.SIGKILL)))
        second = await client.run(a_request("split"))
    assert first.report["clouds"] == [dying.address, living.address]
    assert second.report["clouds"] == [living.address]
    assert second.report["step_sources"] == PLANNED["split"]
    assert second.report["handoff"]["reason"] == "plan"


@pytest.mark.parametrize(
    ("mode", "cut"),
    [
        pytest.param(mode, cut, id=f"{mode}-{cut}", marks=() if mode == "ecdiff" else pytest.mark.slow)
        for mode in PLANNED
        for cut in ("blackhole", "reset")
    ],
)
async def test_cut_off_cloud_costs_no_picture(
    start_cloud: StartCloud, pair: ReferencePair, mode: str, cut: str
) -> None:
    cloud = start_cloud()
    hold_before(cloud, mode, 5)
    async with EmulatedNetwork(cloud.address, Link()) as network:
        result, trigger = await generate_with_fault(
            network.address, mode, 5, getattr(network, cut), silent_fault=cut == "blackhole"
        )
        check_taken_over(result, trigger, pair, mode, 5)
    cloud.unet.open()
    await eventually(cloud.is_empty, "the session of the lost edge to be gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_command_line_says_that_the_cloud_was_lost_and_exits_0(
    programs: Programs, start_cloud: StartCloud, tmp_path: Path, number: signal.Signals
) -> None:
    cloud = start_cloud()
    hold_before(cloud, "split", 7)
    edge = programs.forked(
        *("edge_client", "generate", "a cat", "--mode", "split", "--steps", "16,4", "--cloud", cloud.address),
        *("--edge-model", str(EDGE_MODEL), "--cloud-timeout", str(SHORT_SILENCE_SECONDS)),
        folder=tmp_path,
    )
    await eventually(lambda: cloud.unet.holding, "the cloud to reach the step")
    cloud.program.signal(number)
    done = await asyncio.to_thread(edge.wait)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: cloud lost (")
    assert "cloud_lost @ " in done.stdout
    assert (tmp_path / "out.png").exists()
