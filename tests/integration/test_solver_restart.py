"""A multistep solver whose history did not come, or is damaged, restarts at order 1 and says so."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from solver_requests import HISTORY, MULTISTEP, STEPS, a_request, reference

from edge_client import EdgeClient, GenerationResult
from edge_client.recorder import Snapshot
from harness.cloud import StartCloud
from harness.reference import EDGE_MODEL, LATENTS_SHAPE, TOLERANCE, ReferencePair, distance
from harness.scripted_cloud import Send, honest_opened, scripted_cloud, some_latents
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.convert import encode_server
from wire.errors import NotServing
from wire.messages import Array, Codec, Description, HandedOff, Open, Opened, Source, State, Step, Totals

pytestmark = pytest.mark.asyncio(loop_scope="session")


GOOD_STEPS = 5
LATENTS = [some_latents(LATENTS_SHAPE, seed) for seed in range(STEPS)]


async def generate_with(
    description: Description, scheduler: str, ending: Callable[[Send], Awaitable[None]]
) -> GenerationResult:
    """Run against a cloud that is honest for some steps and then does what `ending` says."""

    async def script(opening: Open, send: Send) -> None:
        await send(honest_opened(description, opening, latents_shape=LATENTS_SHAPE))
        for index in range(GOOD_STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))
        await ending(send)

    options = PlanOptions(num_inference_steps=STEPS, handoff_step=GOOD_STEPS)
    request = dataclasses.replace(a_request(scheduler), plan_options=options)
    async with (
        scripted_cloud(description, script) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client,
    ):
        return await client.run(request)


def handed_off(history: dict[str, Array]) -> pb.ServerMessage:
    state = State(step_index=GOOD_STEPS, latents=LATENTS[GOOD_STEPS - 1], scheduler_state=history)
    return encode_server(HandedOff(state=state, totals=Totals()), codec=Codec.RAW)


def check_restarted(result: GenerationResult, scheduler: str, reason: str) -> None:
    report = result.report
    assert report["handoff"] == {"reason": reason, "step": GOOD_STEPS}
    assert report["step_sources"] == "C" * GOOD_STEPS + "e" * (STEPS - GOOD_STEPS)
    (line,) = report["fallbacks"]
    assert line.endswith(f"; {scheduler} restarts there at order 1")
    assert "\n" not in line
    assert np.isfinite(result.latents).all()


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_solver_restarts_at_order_1_when_the_cloud_is_lost(description: Description, scheduler: str) -> None:
    async def lost(send: Send) -> None:
        raise NotServing("gone")

    check_restarted(await generate_with(description, scheduler, lost), scheduler, "cloud_lost")


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_restart_at_order_1_is_what_one_process_makes_of_it(
    start_cloud: StartCloud, pair: ReferencePair, scheduler: str
) -> None:
    cloud = start_cloud()
    cloud.unet.hold_after(GOOD_STEPS)

    def kill(snapshot: Snapshot) -> None:
        if snapshot.phase == "cloud" and len(snapshot.step_sources) == GOOD_STEPS:
            cloud.program.signal(signal.SIGKILL)

    async with EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client:
        result = await client.run(a_request(scheduler), kill)
    check_restarted(result, scheduler, "cloud_lost")
    sources = result.report["step_sources"]
    restarted = reference(pair, scheduler, "split", sources, restart_step=GOOD_STEPS)
    assert distance(result.latents, restarted) < TOLERANCE
    assert distance(restarted, reference(pair, scheduler, "split", sources)) > TOLERANCE


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_handoff_without_history_is_used_and_told(description: Description, scheduler: str) -> None:
    async def bare(send: Send) -> None:
        await send(handed_off({}))

    check_restarted(await generate_with(description, scheduler, bare), scheduler, "plan")


def another_shape(tensor: pb.Tensor) -> None:
    tensor.shape[:] = [1, 4, 32, 8]


def nan(tensor: pb.Tensor) -> None:
    tensor.data = np.full(LATENTS_SHAPE, np.nan, np.float32).tobytes()


def half_precision(tensor: pb.Tensor) -> None:
    tensor.dtype = pb.DTYPE_FLOAT16
    tensor.raw_bytes //= 2


@pytest.mark.parametrize("damage", [another_shape, nan, half_precision], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_damaged_history_costs_no_picture(
    description: Description, scheduler: str, damage: Callable[[pb.Tensor], None]
) -> None:
    async def damaged(send: Send) -> None:
        message = handed_off({name: LATENTS[0] for name in HISTORY[scheduler]})
        damage(message.handed_off.state.scheduler_state["denoised_1"])
        await send(message)

    check_restarted(await generate_with(description, scheduler, damaged), scheduler, "cloud_error")


@pytest.mark.parametrize("names", [["model_outputs_0"], ["last_latents"], ["denoised_1", "x" * 60]], ids=str)
@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_history_under_other_names_costs_no_picture(
    description: Description, scheduler: str, names: list[str]
) -> None:
    async def renamed(send: Send) -> None:
        await send(handed_off(dict.fromkeys(names, LATENTS[0])))

    result = await generate_with(description, scheduler, renamed)
    check_restarted(result, scheduler, "cloud_error")
    assert "the scheduler state of" in result.report["fallbacks"][0]


def other_sigmas(opened: Opened) -> Opened:
    return dataclasses.replace(opened, sigmas=tuple(0.9 * sigma for sigma in opened.sigmas))


def other_scheduler(opened: Opened) -> Opened:
    return dataclasses.replace(opened, scheduler_class="DDIMScheduler", scheduler_config="{}")


def other_order(opened: Opened) -> Opened:
    return dataclasses.replace(opened, scheduler_config='{"solver_order": 3}')


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (other_sigmas, "the cloud's sigmas are not those of the scheduler that it names"),
        (other_scheduler, "the cloud steps by DDIMScheduler, the edge asked for UniPCMultistepScheduler"),
        (other_order, "solver_order must be 2, not 3"),
    ],
    ids=["sigmas", "scheduler", "order"],
)
async def test_cloud_that_steps_in_another_way_is_not_followed(
    description: Description, change: Callable[[Opened], Opened], why: str
) -> None:
    async def script(opening: Open, send: Send) -> None:
        await send(change(honest_opened(description, opening, latents_shape=LATENTS_SHAPE)))

    async with (
        scripted_cloud(description, script) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60) as client,
    ):
        result = await client.run(a_request("unipc"))
    assert result.report["handoff"] == {"reason": "cloud_error", "step": 0}
    assert result.report["step_sources"] == "e" * STEPS
    (line,) = result.report["fallbacks"]
    assert why in line
