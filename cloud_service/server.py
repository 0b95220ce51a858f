"""The process: ports, health, loading, signals, draining."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

import grpc.aio

from cloud_service.backend import Backend
from cloud_service.config import LOGGER_NAME, ServerConfig
from cloud_service.registry import PARKED_PER_RUNNING
from diffusion.loading import load_model
from diffusion.model import Model
from protos import ecdiff_v1_pb2, ecdiff_v1_pb2_grpc
from wire.channel import MAX_CONNECTIONS, SERVER_OPTIONS
from wire.serving.address import Address
from wire.serving.ports import Ports
from wire.serving.stop import Stop
from wire.serving.token import TokenInterceptor

_log = logging.getLogger(LOGGER_NAME)
_SERVICE_NAME = ecdiff_v1_pb2.DESCRIPTOR.services_by_name["CloudDenoiser"].full_name
# Of one connection: Describe, Probe, health, and streams that are to be told to come back.
CALLS_BESIDE_SESSIONS = 32


class CloudServer:
    """One service: ports first, so that clients see NOT_SERVING; then the model; then SERVING.

    Args:
        config: Where to serve, and how much.
        load: Loads the model; called on the device thread.
    """

    def __init__(self, config: ServerConfig, load: Callable[[], Model]) -> None:
        self.backend = Backend(config, load, on_hanging=self._say_hanging)
        self._config = config
        # A connection is one client's: what it may have here, running and parked.
        max_sessions = config.max_sessions_per_client or config.max_sessions
        max_calls = (1 + PARKED_PER_RUNNING) * max_sessions + CALLS_BESIDE_SESSIONS
        tokens, on_refused = config.tokens, self.backend.metrics.rejected
        self._ports = Ports(
            _SERVICE_NAME,
            listen=config.listen,
            metrics_listen=config.metrics_listen,
            registry=self.backend.metrics.registry,
            tls=config.tls,
            interceptors=[] if tokens is None else [TokenInterceptor(tokens, on_refused=on_refused)],
            options=(
                *SERVER_OPTIONS,
                ("grpc.max_concurrent_streams", max_calls),
                (MAX_CONNECTIONS, config.max_connections),
            ),
        )

    # ------------------------------------------------------------------------------ starting

    async def listen(self) -> tuple[Address, Address]:
        """Bind both ports and answer NOT_SERVING.

        Returns:
            The real addresses of gRPC and of the metrics.

        Raises:
            OSError: A port cannot be had, or the TLS files are none.
        """
        return await self._ports.open(self._register)

    def _register(self, server: grpc.aio.Server) -> None:
        ecdiff_v1_pb2_grpc.add_CloudDenoiserServicer_to_server(self.backend.servicer, server)

    async def load(self) -> str:
        """Load the model and say SERVING.

        Returns:
            The model's name.

        Raises:
            ValueError: It is no model that can be run here.
            OSError: It cannot be read or fetched.
            MemoryError: There is no room for it.
        """
        name = await self.backend.load()
        await self._ports.set_serving(True)
        return name

    # ------------------------------------------------------------------------------ stopping

    async def drain(self) -> None:
        """Say NOT_SERVING, let running sessions finish, and stop, all within the grace period."""
        _log.info("draining", extra={"sessions": self.backend.num_running})
        await self._ports.refuse()
        await self.backend.drain()
        await asyncio.gather(self._ports.close(self._config.timings.last_words_seconds), self.backend.stop())

    # ------------------------------------------------------------------------------ health

    async def _say_hanging(self, hangs: bool) -> None:
        """Say NOT_SERVING while the device hangs: the event loop lives on and would heartbeat for ever."""
        await self._ports.set_serving(not hangs)


async def run(config: ServerConfig) -> int:
    """Serve until a signal, or the end of standard input if so configured.

    Returns:
        The process's exit code: 0 after SIGTERM or the end of standard input, 130 after SIGINT, 1 when the
        device thread died, or hangs for good.

    Raises:
        OSError: A port or the model cannot be had.
        ValueError: The model cannot be run here.
        MemoryError: The model does not fit.
    """
    stop = Stop()
    server = CloudServer(
        config, lambda: load_model(config.model, device=config.device, dtype=config.dtype, loras=config.loras)
    )
    address, metrics_address = await server.listen()
    _say(f"cloud-service listening on {address} metrics on {metrics_address}")
    if config.exit_with_stdin:
        stop.when_stdin_ends()
    loading = asyncio.create_task(server.load())
    stopping = asyncio.create_task(stop.requested.wait())
    died = asyncio.create_task(server.backend.died.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        _say(f"cloud-service serving {loading.result()}")
        # The imports left a few hundred thousand objects that never die; no collection has to walk them again.
        gc.freeze()
        await asyncio.wait({stopping, died}, return_when=asyncio.FIRST_COMPLETED)
    else:
        loading.cancel()
    await server.drain()
    return 1 if server.backend.died.is_set() else stop.exit_code


def _say(line: str) -> None:
    print(line, flush=True)
