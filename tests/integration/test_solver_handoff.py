"""Solvers beside DDIM over real gRPC: their history travels with the handoff, and what happens where it does not."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from cloud_harness import Stream as RawStream
from cloud_harness import always, open_channel, opening, running_cloud

from edge_client import EdgeClient, GenerationResult
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, RunEdge, StartCloud
from harness.reference import EDGE_MODEL, LATENTS_SHAPE, TOLERANCE, ReferencePair, distance
from harness.scripted_cloud import Send, honest_opened, scripted_cloud, some_latents
from orchestrator.plan import PlanOptions
from protos import ecdiff_v1_pb2 as pb
from wire.convert import encode_server
from wire.errors import InvalidRequest, NotServing
from wire.messages import Array, Codec, Description, HandedOff, HandOff, Open, Opened, Source, State, Step, Totals

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, HANDOFF_STEP = 20, 12
SCHEDULERS = ["dpmpp-2m", "unipc", "euler"]
MULTISTEP = ["dpmpp-2m", "unipc"]
HISTORY = {
    "ddim": set(),
    "euler": set(),
    "dpmpp-2m": {"denoised_1"},
    "unipc": {"denoised_1", "denoised_2", "last_latents"},
}
SOURCES = {"split": "C" * 12 + "e" * 8, "ecdiff": "CCCxxCxxCxxC" + "e" * 8}
OPTIONS = {
    "split": PlanOptions(num_inference_steps=STEPS, handoff_step=HANDOFF_STEP),
    "ecdiff": PlanOptions(
        num_inference_steps=STEPS, handoff_step=HANDOFF_STEP, warmup_steps=3, skip_interval=2, smoothing=0.3
    ),
}


def a_request(scheduler: str, mode: str = "split", codec: str = "raw") -> GenerationRequest:
    return GenerationRequest(
        prompt="a cat",
        mode=mode,
        plan_options=OPTIONS[mode],
        guidance_scale=2.0,
        seed=5,
        scheduler=scheduler,
        latents_codec=codec,
    )


def reference(pair: ReferencePair, scheduler: str, mode: str, sources: str = "", restart_step: int = 0) -> Array:
    """Return what one process makes of the same steps, with one scheduler from end to end."""
    return pair.final_latents(
        sources or SOURCES[mode],
        prompt="a cat",
        guidance_scale=2.0,
        seed=5,
        plan=a_request(scheduler, mode).plan,
        scheduler=scheduler,
        restart_step=restart_step,
    )


# ------------------------------------------------------------------------------ the history travels


@pytest.mark.parametrize("mode", SOURCES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_handoff_equals_an_uninterrupted_run(
    client: EdgeClient, pair: ReferencePair, scheduler: str, mode: str
) -> None:
    result = await client.run(a_request(scheduler, mode))
    assert result.report["step_sources"] == SOURCES[mode]
    assert result.report["scheduler"] == scheduler
    assert result.report["fallbacks"] == []
    assert distance(result.latents, reference(pair, scheduler, mode)) < TOLERANCE


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_zstd_changes_no_bit_of_the_history_and_int8_block_little(client: EdgeClient, scheduler: str) -> None:
    latents = {codec: (await client.run(a_request(scheduler, codec=codec))).latents for codec in ("raw", "zstd")}
    assert np.array_equal(latents["zstd"], latents["raw"])
    lossy = (await client.run(a_request(scheduler, codec="int8-block"))).latents
    assert 0 < distance(lossy, latents["raw"]) < 0.1


async def test_command_line_takes_the_scheduler(run_edge: RunEdge, cloud: Cloud) -> None:
    where = ("--cloud", cloud.address, "--edge-model", EDGE_MODEL, "--quiet")
    done = run_edge("generate", "a cat", "--steps", "3,2", "--scheduler", "unipc", *where)
    assert (done.returncode, done.stderr) == (0, "")
    refused = run_edge("generate", "a cat", "--scheduler", "heun", *where)
    assert refused.returncode == 2
    assert "choose one of ddim, dpmpp-2m, unipc, euler" in refused.stderr


@pytest.mark.parametrize("scheduler", HISTORY)
async def test_only_the_handoff_carries_history_and_its_bytes_are_counted(scheduler: str) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = RawStream(stub)
        await stream.send(opening(always(6, 4), scheduler=scheduler, stream_latents=False))
        _, _, ending = await stream.receive_steps()
        assert isinstance(ending, HandedOff)
        assert set(ending.state.scheduler_state) == HISTORY[scheduler]
        labels = {"direction": "sent", "codec": "raw", "kind": "wire"}
        sent = cloud.sample("ecdiff_latents_bytes_total", **labels)
        assert sent == (1 + len(HISTORY[scheduler])) * ending.state.latents.nbytes
        stream.call.cancel()


@pytest.mark.parametrize("at", [1, 4, 5])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_another_cloud_session_continues_bit_identically_from_the_state(scheduler: str, at: int) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:

        async def end_of(handoff_step: int, **start: State) -> State:
            stream = RawStream(stub)
            await stream.send(opening(always(6, handoff_step), scheduler=scheduler, stream_latents=False, **start))
            _, _, ending = await stream.receive_steps()
            stream.call.cancel()
            return ending.state

        whole, first = await end_of(6), await end_of(at)
        last = await end_of(6, start=first)
        assert np.array_equal(last.latents, whole.latents)
        assert last.scheduler_state == {}
        # From streamed latents alone, as after the loss of a cloud: another trajectory, but not far off.
        bare = await end_of(6, start=dataclasses.replace(first, scheduler_state={}))
        # The last step goes to sigma 0, where nothing but the newest x0 counts.
        assert np.array_equal(bare.latents, whole.latents) == (scheduler == "euler" or at == 5)
        assert distance(bare.latents, whole.latents) < 1


@pytest.mark.parametrize("scheduler", MULTISTEP)
async def test_a_state_that_was_asked_for_carries_history_too(scheduler: str) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = RawStream(stub)
        await stream.send(opening(always(STEPS), scheduler=scheduler))
        cloud.model.permit(3)
        await cloud.model.begun(4)
        await stream.send(HandOff())
        cloud.model.permit(1)
        _, _, ending = await stream.receive_steps()
        assert 4 <= ending.state.step_index <= 5
        assert set(ending.state.scheduler_state) == HISTORY[scheduler]
        stream.call.cancel()


@pytest.mark.parametrize(
    ("scheduler", "names"),
    [("dpmpp-2m", ["denoised_2"]), ("unipc", ["denoised_1"]), ("euler", ["denoised_1"])],
)
async def test_cloud_refuses_a_history_that_cannot_be(scheduler: str, names: list[str]) -> None:
    latents = some_latents(LATENTS_SHAPE, 0)
    state = State(step_index=3, latents=latents, scheduler_state=dict.fromkeys(names, latents))
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = RawStream(stub)
        await stream.send(opening(always(6), scheduler=scheduler, start=state))
        error = await stream.error()
    assert isinstance(error, InvalidRequest)
    assert "histor" in str(error)


# ------------------------------------------------------------------------------ and where it does not

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
