"""The agent's parts: turns, updates, messages, settings, series."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import fields, replace
from pathlib import Path

import pytest

from edge_client.agent.config import AgentConfig
from edge_client.agent.convert import decode_request, decode_snapshot, encode_request, encode_snapshot
from edge_client.agent.settings import Settings, difference
from edge_client.agent.turns import Ticket, Turns
from edge_client.agent.updates import Updates
from edge_client.file_content import FileContent
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from edge_client.series import SERIES, Observation
from models import bundled_pair
from orchestrator.plan import PlanOptions
from protos import edge_agent_v1_pb2 as pb
from wire.errors import Busy
from wire.serving.address import Address

SNAPSHOT = Snapshot(
    phase="cloud",
    num_inference_steps=50,
    step_sources="CCx",
    rtt_seconds=0.01,
    bytes_received=7,
    bytes_sent=5,
    queue_position=2,
)


# ------------------------------------------------------------------------------ turns


class Line:
    """Tickets in a queue, each a task that holds its turn until it is let go."""

    def __init__(self, max_waiting: int) -> None:
        self.num_waiting: list[int] = []
        self.turns = Turns(max_waiting=max_waiting, on_change=self.num_waiting.append)
        self.places: dict[str, list[int]] = {}
        self.order: list[str] = []

    def join(self, name: str) -> asyncio.Task[None]:
        return asyncio.create_task(self._hold(name))

    async def _hold(self, name: str) -> None:
        places = self.places.setdefault(name, [])
        ticket = Ticket(request=GenerationRequest(prompt=name), on_place=places.append, arrived_at=0.0)
        async with self.turns.turn(ticket):
            self.order.append(name)
            await asyncio.Event().wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def leave(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await settle()


async def test_turns_go_in_order_and_everyone_knows_how_many_are_ahead() -> None:
    line = Line(max_waiting=2)
    tasks = {name: line.join(name) for name in "abc"}
    await settle()
    assert line.order == ["a"]
    await leave(tasks["b"])  # gives up in the queue
    assert line.order == ["a"]
    await leave(tasks["a"])
    assert line.order == ["a", "c"]
    assert line.places["c"] == [2, 2, 1, 0][-len(line.places["c"]) :]
    await leave(tasks["c"])
    assert line.num_waiting[-1] == 0
    assert list(line.turns.line) == []


async def test_queue_that_is_full_refuses() -> None:
    line = Line(max_waiting=1)
    tasks = [line.join(name) for name in "abc"]
    await settle()
    with pytest.raises(Busy, match=r"queue is full \(1 wait\)"):
        await tasks[2]
    for task in tasks[:2]:
        await leave(task)


# ------------------------------------------------------------------------------ updates


async def test_slow_reader_misses_old_snapshots_and_no_note() -> None:
    updates = Updates()
    updates.place(2)
    updates.place(1)
    updates.progress(SNAPSHOT)
    updates.progress(replace(SNAPSHOT, note="the cloud was lost"))
    updates.progress(replace(SNAPSHOT, step_sources="CCxC"))
    updates.progress(replace(SNAPSHOT, step_sources="CCxCC"))
    updates.close()
    told = [update.progress async for update in updates]
    assert [each.note for each in told] == ["the cloud was lost", ""]
    assert told[-1].step_sources == "CCxCC"


async def test_client_that_waits_hears_something_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.agent.updates.HEARTBEAT_SECONDS", 0.01)
    updates = Updates()
    updates.progress(replace(SNAPSHOT, note="the cloud was lost"))
    told = aiter(updates)
    notes = [(await anext(told)).progress.note for _ in range(3)]
    assert notes == ["the cloud was lost", "", ""]
    await told.aclose()


# ------------------------------------------------------------------------------ messages

FULL = GenerationRequest(
    prompt="a cat",
    mode="adaptive",
    plan_options=PlanOptions(
        num_inference_steps=20,
        handoff_step=15,
        warmup_steps=3,
        skip_interval=4,
        smoothing=0.2,
        predictor="ecdiff",
        refresh="growing",
        final_steps=1,
        max_cloud_calls=9,
        tolerance=0.3,
        corrections="final",
        shadow=False,
        deadline_ms=900.0,
        strength=0.75,
    ),
    guidance_scale=3.0,
    guidance_rescale=0.5,
    negative_prompt="a dog",
    seed=2**63 - 1,
    height=64,
    width=72,
    num_images=3,
    num_frames=9,
    fps=24,
    text_encoder="cloud",
    scheduler="unipc",
    image=FileContent(path="a/p.png", content=b"0"),
    initial_latents=FileContent(path="a/n.npy", content=b"1"),
    latents_codec="raw",
    preview=True,
    decode="cloud",
    request_id="abc",
)


def test_every_field_of_a_request_travels() -> None:
    listed = GenerationRequest(prompt="x", mode="ecdiff", plan_options=PlanOptions(real_steps=(0, 1, 5)))
    planned = GenerationRequest(prompt="x", plan_file=FileContent(path="p.json", content=b"2"))
    for request in (FULL, listed, planned, GenerationRequest(prompt="x")):
        message = pb.GenerateRequest.FromString(encode_request(request, want_latents=False).SerializeToString())
        assert decode_request(message) == request


def test_full_request_leaves_no_field_at_its_default() -> None:
    default = GenerationRequest(prompt="x")
    left = {field.name for field in fields(FULL) if getattr(FULL, field.name) == getattr(default, field.name)}
    assert left == {"mode", "plan_file"}
    options = {field.name for field in fields(PlanOptions)}
    assert {name for name in options if getattr(FULL.plan_options, name) == getattr(default.plan_options, name)} == {
        "real_steps"
    }


def test_request_that_says_little_gets_the_defaults() -> None:
    request = decode_request(pb.GenerateRequest(prompt="x"))
    assert replace(request, request_id="") == GenerationRequest(prompt="x", request_id="")


def test_any_bound_on_cloud_calls_travels() -> None:
    request = replace(FULL, plan_options=replace(FULL.plan_options, max_cloud_calls=10**30))
    sent = decode_request(encode_request(request, want_latents=False))
    assert sent.plan == request.plan


def test_snapshot_travels() -> None:
    assert decode_snapshot(encode_snapshot(replace(SNAPSHOT, note="so")).progress) == replace(SNAPSHOT, note="so")


# ------------------------------------------------------------------------------ settings


def status_of(options: dict[str, object]) -> pb.AgentStatus:
    edge_model = pb.EdgeModelStatus(device="cpu", dtype="float32")
    return pb.AgentStatus(settings=Settings.of(options).encode(), edge_model=edge_model)


def test_command_fits_an_agent_that_has_all_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("secret")
    agent = status_of({"cloud": "gpu:50051", "device": "auto", "dtype": "auto", "auth_token_file": Path("token")})
    wanted = {
        "cloud": "gpu:50051",
        "edge_model": str(bundled_pair().edge),
        "device": "cpu",
        "dtype": "float32",
        "auth_token_file": tmp_path / "token",
    }
    assert difference(agent, wanted.keys(), wanted) is None
    for name, other, line in (
        ("cloud", "gpu:50052", "the agent was started with --cloud gpu:50051"),
        ("cloud_model", "big", "the agent was started without --cloud-model"),
        ("edge_model", "nobody/small", f"the agent was started with --edge-model {bundled_pair().edge}"),
        ("device", "cuda", "the agent was started with --device auto"),
        ("dtype", "float16", "the agent was started with --dtype auto"),
        ("auth_token_file", tmp_path / "other", f"the agent was started with --auth-token-file {tmp_path / 'token'}"),
        ("tls_ca", tmp_path / "ca.pem", "the agent was started without --tls-ca"),
        ("orchestrator", "fleet:50061", "the agent was started without --orchestrator"),
    ):
        assert difference(agent, {name}, {**wanted, name: other}) == line
    # What nobody named is the agent's to choose.
    assert difference(agent, {"device"}, {**wanted, "cloud": None}) is None


def test_agent_with_a_cloud_service_of_its_own_says_which_model() -> None:
    assert difference(status_of({}), {"cloud_model"}, {"cloud_model": str(bundled_pair().cloud)}) is None
    assert "without --cloud" in (difference(status_of({}), {"cloud"}, {"cloud": "gpu:50051"}) or "")


def test_agent_listens_on_its_machine_only() -> None:
    metrics = Address(host="0.0.0.0", port=9103)  # Prometheus may be elsewhere
    for host in ("127.0.0.1", "::1", "localhost"):
        AgentConfig(listen=Address(host=host, port=1), metrics_listen=metrics, settings=Settings())
    for host in ("0.0.0.0", "10.0.0.1", "example.org"):
        with pytest.raises(ValueError, match="listens on this machine only"):
            AgentConfig(listen=Address(host=host, port=1), metrics_listen=metrics, settings=Settings())


# ------------------------------------------------------------------------------ series


def test_observation_fits_its_series() -> None:
    Observation(series="ecdiff_clock_offset_seconds", values=(-3.0,))
    for series, labels, values in (
        ("ecdiff_nfe_total", {"source": "cloud", "request": "1"}, (1.0,)),
        ("ecdiff_handoff_step", {}, (-1.0,)),
    ):
        with pytest.raises(ValueError, match=series):
            Observation(series=series, labels=labels, values=values)
    assert all(name.startswith("ecdiff_") for name in SERIES)


# ------------------------------------------------------------------------------ finding


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


WRONG_AGENTS = {"no-port": "nowhere", "elsewhere": "10.0.0.1:50071"}


@pytest.mark.parametrize("address", WRONG_AGENTS.values(), ids=WRONG_AGENTS)
def test_environment_that_names_no_agent_of_this_machine_is_bad_usage(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_client import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECDIFF_AGENT", address)
    for command in (["generate", "x", "--mode", "edge"], ["status"]):
        monkeypatch.setattr("sys.argv", ["edge-client", *command])
        assert cli.run() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ECDIFF_AGENT")


def test_status_without_an_agent_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_client import cli

    monkeypatch.setenv("ECDIFF_AGENT", free_address())
    monkeypatch.setattr("sys.argv", ["edge-client", "status"])
    assert cli.run() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("start one with edge-client serve")
