"""The process: ports, plans, replicas, estimates, signals."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import logging
import time

import grpc.aio

from orchestrator.service.config import LOGGER_NAME, OrchestratorConfig
from orchestrator.service.fleet import Fleet
from orchestrator.service.library import PlanLibrary
from orchestrator.service.metrics import FleetMetrics
from orchestrator.service.replicas import Watcher
from orchestrator.service.servicer import Orchestrator
from orchestrator.service.state import StateFile
from protos import orchestrator_v1_pb2, orchestrator_v1_pb2_grpc
from wire.channel import MAX_CONNECTIONS, SERVER_OPTIONS
from wire.serving.address import Address
from wire.serving.ports import Ports
from wire.serving.stop import Stop
from wire.serving.token import TokenInterceptor
from wire.targets import address_of

_log = logging.getLogger(LOGGER_NAME)
_SERVICE_NAME = orchestrator_v1_pb2.DESCRIPTOR.services_by_name["Orchestrator"].full_name
# Requests are a few hundred bytes; whoever sends more, or holds more calls open at a time, is no edge.
_MAX_REQUEST_BYTES = 64 * 1024
_MAX_CALLS_OF_A_CONNECTION = 64
_LIMITS = {
    "grpc.max_receive_message_length": _MAX_REQUEST_BYTES,
    "grpc.max_concurrent_streams": _MAX_CALLS_OF_A_CONNECTION,
}


class OrchestratorServer:
    """One service: what it knows, and what keeps that fresh.

    Args:
        config: Where to serve, and what.

    Raises:
        ValueError: The token for the replicas would travel in the clear.
        OSError: The folder of the estimates, a token or a certificate cannot be used.
    """

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config
        self._state = None if config.state is None else StateFile(config.state)
        known = {} if self._state is None else self._state.load(time.time())
        self._fleet = Fleet(known)
        self._library = PlanLibrary(config.plans)
        self._metrics = FleetMetrics()
        for target in config.replicas:
            config.credentials.metadata(address_of(target))  # what is wrong with it is known at once
        self._watcher = Watcher(
            self._fleet,
            config.replicas,
            config.credentials,
            config.timings,
            on_look=self._show,
            on_gone=self._metrics.replica_gone,
        )
        tokens = config.tokens
        self._ports = Ports(
            _SERVICE_NAME,
            listen=config.listen,
            metrics_listen=config.metrics_listen,
            registry=self._metrics.registry,
            tls=config.tls,
            interceptors=[] if tokens is None else [TokenInterceptor(tokens, on_refused=self._metrics.token_refused)],
            options=tuple((dict(SERVER_OPTIONS) | _LIMITS | {MAX_CONNECTIONS: config.max_connections}).items()),
        )
        self._saving: asyncio.Task[None] | None = None

    async def listen(self) -> tuple[Address, Address]:
        """Bind both ports and answer NOT_SERVING.

        Returns:
            The real addresses of gRPC and of the metrics.

        Raises:
            OSError: A port cannot be had, or the TLS files are none.
        """
        return await self._ports.open(self._register)

    async def start(self) -> str:
        """Read the plans, look at the replicas once, and say SERVING.

        Returns:
            What is served, in words.
        """
        self._library.refresh()
        await self._watcher.start()
        self._saving = asyncio.create_task(self._save_now_and_then())
        await self._ports.set_serving(True)
        files = [each for each in self._library.status() if not each.problem]
        num_up = sum(state.is_up for state in self._fleet.states.values())
        num_files, num_replicas = len(files), len(self._fleet.states)
        plural = "" if num_files == 1 else "s"
        return f"{num_files} plan file{plural}, {num_up} of {num_replicas} replicas up"

    async def drain(self) -> None:
        """Say NOT_SERVING, let running calls finish, save the estimates."""
        _log.info("draining")
        await self._ports.refuse()
        if self._saving is not None:
            self._saving.cancel()
        await self._watcher.stop()
        await self._ports.close(self._config.grace_seconds)
        self._save()

    def _register(self, server: grpc.aio.Server) -> None:
        servicer = Orchestrator(
            self._library,
            self._fleet,
            self._metrics,
            version=importlib.metadata.version("ecdiff"),
            on_report=self._show,
        )
        orchestrator_v1_pb2_grpc.add_OrchestratorServicer_to_server(servicer, server)

    def _show(self, address: str) -> None:
        self._metrics.replica(self._fleet.replica(address, time.time()))

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._config.timings.save_seconds)
            try:
                self._library.refresh()
                self._save()
            except Exception:  # whatever it is: else nobody would notice that nothing is saved any more
                _log.exception("saving failed")

    def _save(self) -> None:
        if self._state is None:
            return
        try:
            self._state.save(self._fleet.remembered)
        except OSError as error:
            _log.error("the estimates cannot be saved", extra={"problem": str(error)})


async def run(config: OrchestratorConfig) -> int:
    """Serve until a signal, or the end of standard input if so configured.

    Returns:
        The process's exit code: 0 after SIGTERM or the end of standard input, 130 after SIGINT.

    Raises:
        OSError: A port, a file or a folder cannot be had.
        ValueError: The token for the replicas would travel in the clear.
    """
    stop = Stop()
    server = OrchestratorServer(config)
    address, metrics_address = await server.listen()
    _say(f"orchestrator listening on {address} metrics on {metrics_address}")
    if config.exit_with_stdin:
        stop.when_stdin_ends()
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.requested.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        _say(f"orchestrator serving {starting.result()}")
        gc.freeze()
        await stopping
    else:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    await server.drain()
    return stop.exit_code


def _say(line: str) -> None:
    print(line, flush=True)
