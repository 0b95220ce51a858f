"""Real services over real gRPC on 127.0.0.1, with the tiny pair of tests/data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from liar_harness import Liar
from PIL import Image

from diffusion.loading import load_model
from edge_client import EdgeClient
from edge_client.cloud_link import CloudLink
from harness import carrier
from harness.agent import Agent, StartAgent, StartCommand
from harness.cloud import Cloud, RunEdge, StartCloud
from harness.gate import Gate
from harness.orchestrator import Orchestrator, StartOrchestrator
from harness.programs import Finished, Program, Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL, ReferencePair
from harness.scripted_cloud import Send, scripted_cloud
from harness.searched import plan_file, searched
from wire.credentials import Credentials
from wire.messages import Description, Open

FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # As in the processes under test: sums come out the same, and nobody fights for two cores.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with Programs(tmp_path_factory.mktemp("programs")) as programs:
        yield programs


@pytest.fixture(scope="session")
def cloud(programs: Programs) -> Cloud:
    """The cloud service that most tests share, started as a user starts it."""
    if carrier.on_ray:
        from harness.ray_cloud import free_port

        where = ("--port", str(free_port()), "--metrics-listen", "127.0.0.1:0", "--replicas", "2")
        few_cores = ("--cpus-per-replica", "0.1")
        return Cloud(programs.cold("deploy.ray", "serve", "--model", str(CLOUD_MODEL), *where, *few_cores))
    return Cloud(programs.cold("cloud_service", "serve", "--model", str(CLOUD_MODEL), *FREE_PORTS))


@pytest.fixture
def start_cloud(programs: Programs, tmp_path: Path) -> Iterator[StartCloud]:
    """Starts a cloud that can be held at a step; it is killed at the end of the test."""
    clouds: list[Cloud] = []

    def start(*arguments: str, model: Path = CLOUD_MODEL) -> Cloud:
        gates = tmp_path / f"gates-{len(clouds)}"
        Gate.create(gates)
        program = programs.forked("cloud_service", "serve", "--model", str(model), *FREE_PORTS, *arguments, gate=gates)
        clouds.append(Cloud(program, gates))
        return clouds[-1]

    yield start
    for started in clouds:
        started.program.kill()


@pytest.fixture
def run_edge(programs: Programs, tmp_path: Path) -> RunEdge:
    """Runs `edge-client` in the test's folder, to its end."""

    def run(*arguments: str | Path, file_limit_bytes: int = 0) -> Finished:
        words = [str(argument) for argument in arguments]
        return programs.forked("edge_client", *words, folder=tmp_path, file_limit_bytes=file_limit_bytes).wait()

    return run


@pytest.fixture(scope="session")
def agent(programs: Programs, cloud: Cloud) -> Agent:
    """The agent that most of its tests share; its queue takes three."""
    arguments = ("--cloud", cloud.address, "--edge-model", str(EDGE_MODEL), "--max-queue", "3")
    return Agent(programs.forked("edge_client", "serve", *arguments, *FREE_PORTS))


@pytest.fixture
def start_agent(programs: Programs, tmp_path: Path) -> Iterator[StartAgent]:
    """Starts an agent of the tiny edge model that can be held at a step; it is killed at the end of the test."""
    agents: list[Agent] = []

    def start(*arguments: str | Path) -> Agent:
        gates = tmp_path / f"agent-gates-{len(agents)}"
        Gate.create(gates)
        words = ["--edge-model", str(EDGE_MODEL), *map(str, arguments)]
        agents.append(Agent(programs.forked("edge_client", "serve", *words, *FREE_PORTS, gate=gates), gates))
        return agents[-1]

    yield start
    for started in agents:
        started.program.kill()


@pytest.fixture
def start_command(programs: Programs, tmp_path: Path) -> StartCommand:
    """Starts `edge-client` in the test's folder, where it finds an agent."""

    def start(agent: Agent, *arguments: str | Path) -> Program:
        words = [str(argument) for argument in arguments]
        environment = {"ECDIFF_AGENT": agent.address}
        return programs.forked("edge_client", *words, folder=tmp_path, environment=environment)

    return start


@pytest.fixture
def start_orchestrator(programs: Programs) -> Iterator[StartOrchestrator]:
    """Starts `orchestrator serve` in a fresh interpreter, without torch; it is killed at the end of the test."""
    started: list[Orchestrator] = []

    def start(*arguments: str | Path) -> Orchestrator:
        program = programs.cold("orchestrator", "serve", *FREE_PORTS, *map(str, arguments))
        started.append(Orchestrator(program))
        return started[-1]

    yield start
    for each in started:
        each.program.kill()


@pytest.fixture(scope="session")
def edge_fingerprint() -> str:
    """Of the tiny edge model."""
    return load_model(EDGE_MODEL, device="cpu").info.fingerprint


@pytest.fixture
def plans(tmp_path: Path, description: Description, edge_fingerprint: str) -> Path:
    """A folder with one plan file for the tiny pair: 4 calls, the edge takes over before step 8."""
    folder = tmp_path / "plans"
    folder.mkdir()
    plan_file(description, edge_fingerprint, searched((0, 1, 3, 6), 8)).write(folder / "tiny.json")
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(cloud: Cloud) -> AsyncIterator[EdgeClient]:
    """The client that most tests of the Python API share."""
    async with EdgeClient(cloud=cloud.address, edge_model=str(EDGE_MODEL)) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def description(cloud: Cloud) -> Description:
    """What the shared cloud says of itself."""
    link = await CloudLink.connect((cloud.address,), Credentials(), wait_seconds=60)
    await link.close()
    return link.description


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def liar(description: Description) -> AsyncIterator[Liar]:
    """A client before a cloud that plays whatever script a test puts in."""

    async def nothing(opening: Open, send: Send) -> None:
        raise AssertionError("no script")

    liar = Liar(client=EdgeClient(edge_model=str(EDGE_MODEL)), description=description, script=nothing)
    async with (
        scripted_cloud(description, liar.play) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), silence_seconds=60) as liar.client,
    ):
        yield liar


@pytest.fixture(scope="session")
def pair() -> ReferencePair:
    return ReferencePair()


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 90 x 77 pixels, no multiple of anything."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    rows, columns = np.mgrid[0:77, 0:90]
    pixels = np.stack([rows * 3, columns * 2, (rows * columns) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path
