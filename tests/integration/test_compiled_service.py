"""`cloud-service serve --compile`: compiled before SERVING, never afterwards, and the same answers."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from cloud_harness import (
    CLOUD_MODEL,
    LOOPBACK,
    PATIENCE_SECONDS,
    PacedModel,
    Stream,
    always,
    open_channel,
    opening,
    tiny_model,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_service.config import ServerConfig
from cloud_service.server import CloudServer
from diffusion.compiled import OnSize
from harness.cloud import Cloud
from harness.programs import Program, Programs
from harness.waiting import eventually, wait_until
from wire.messages import Finished, HandedOff
from wire.serving.address import Address

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
COMMAND = ("cloud_service", "serve", "--model", str(CLOUD_MODEL), "--compile", "--max-batch", "1")
PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
COMPILING_SECONDS = 600.0


class SlowToCompile(PacedModel):
    """A real model whose compiler waits for the test."""

    def __init__(self) -> None:
        super().__init__(tiny_model())
        self.compiling, self.go_on = threading.Event(), threading.Event()
        self.thread = ""

    def compile(self, sizes: Sequence[int], *, on_size: OnSize) -> None:
        self.thread = threading.current_thread().name
        self.compiling.set()
        assert self.go_on.wait(PATIENCE_SECONDS)


async def health_of(address: Address) -> int:
    async with grpc.aio.insecure_channel(str(address)) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        return int(answer.status)


async def test_it_compiles_on_the_device_thread_and_says_serving_when_it_is_done() -> None:
    model = SlowToCompile()
    config = ServerConfig(
        model=str(CLOUD_MODEL), listen=LOOPBACK, metrics_listen=LOOPBACK, grace_seconds=0.0, compile_steps=True
    )
    server = CloudServer(config, lambda: model)
    address, _ = await server.listen()
    loading = asyncio.create_task(server.load())
    try:
        assert await asyncio.to_thread(model.compiling.wait, PATIENCE_SECONDS)
        assert model.thread == "device"
        assert await health_of(address) == NOT_SERVING
        model.go_on.set()
        await loading
        assert await health_of(address) == SERVING
    finally:
        model.go_on.set()
        await loading
        await server.drain()


def log_of(program: Program) -> list[dict]:
    return [json.loads(line) for line in program.stderr.splitlines() if line.startswith("{")]


async def final_latents(address: str, guidance_scale: float) -> np.ndarray:
    async with open_channel(Address.parse(address)) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(6), guidance_scale=guidance_scale))
        (ending,) = (await stream.receive_until((HandedOff, Finished)))[-1:]
        return np.asarray(ending.state.latents, dtype=np.float32)


@pytest.mark.slow
@pytest.mark.timeout(COMPILING_SECONDS + 120)
async def test_a_compiled_service_answers_as_an_uncompiled_one(programs: Programs, cloud: Cloud) -> None:
    program = programs.cold(*COMMAND, *PORTS)
    await eventually(lambda: "cloud-service serving" in program.stdout, "SERVING", timeout_seconds=COMPILING_SECONDS)
    compiled = Cloud(program)
    events = [(line["event"], line.get("rows")) for line in log_of(program)]
    assert [rows for event, rows in events if event == "compiled"] == [2, 1]
    assert events[-1][0] == "serving"
    for guidance_scale in (7.5, 1.0):
        ours, theirs = [await final_latents(each.address, guidance_scale) for each in (compiled, cloud)]
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)
    program.signal(signal.SIGTERM)
    assert program.wait().returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(COMPILING_SECONDS)
def test_a_machine_that_cannot_compile_says_why_in_one_line(programs: Programs, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    finished = programs.cold(*COMMAND, *PORTS).wait(COMPILING_SECONDS)
    assert finished.returncode == 1
    line = finished.stderr.splitlines()[-1]
    assert line.startswith("error: the model cannot be compiled here (InvalidCxxCompiler: ")
    assert "no-such-compiler" in line
    assert line.endswith("or leave out --compile")
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
@pytest.mark.timeout(COMPILING_SECONDS)
def test_a_service_told_to_stop_while_it_compiles_stops(programs: Programs, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    program = programs.cold(*COMMAND, *PORTS)
    wait_until(lambda: "compiling" in program.stderr, "compiling")
    program.signal(signal.SIGTERM)
    assert program.wait(30).returncode == 0
    assert "Traceback" not in program.stderr
