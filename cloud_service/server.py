"""The process: ports, health, loading, signals, draining."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import prometheus_client
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_service.config import Address, ServerConfig, TlsFiles
from cloud_service.conversation import Service
from cloud_service.engine import Engine
from cloud_service.interceptors import TokenInterceptor
from cloud_service.logs import LOGGER_NAME
from cloud_service.metrics import Metrics
from cloud_service.registry import Registry
from cloud_service.servicer import CloudDenoiser
from diffusion.loading import load_model
from diffusion.model import Model
from protos import ecdiff_v1_pb2, ecdiff_v1_pb2_grpc
from wire.channel import SERVER_OPTIONS
from wire.errors import ModelError
from wire.messages import Limits

_log = logging.getLogger(LOGGER_NAME)
_SERVICE_NAME = ecdiff_v1_pb2.DESCRIPTOR.services_by_name["CloudDenoiser"].full_name
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class CloudServer:
    """One service: ports first, so that clients see NOT_SERVING; then the model; then SERVING.

    Args:
        config: Where to serve, and how much.
        load: Loads the model; called on the device thread.
    """

    def __init__(self, config: ServerConfig, load: Callable[[], Model]) -> None:
        self.metrics = Metrics()
        self.died = asyncio.Event()
        self._config = config
        self._registry = Registry(max_sessions=config.max_sessions, max_batch=config.max_batch, metrics=self.metrics)
        self._engine = Engine(
            load,
            max_batch=config.max_batch,
            timings=config.timings,
            metrics=self.metrics,
            deliver=self._registry.deliver,
            on_death=self._on_death,
        )
        self._service = Service(
            engine=self._engine,
            registry=self._registry,
            metrics=self.metrics,
            limits=Limits(max_sessions=config.max_sessions),
            timings=config.timings,
        )
        self._health = health.aio.HealthServicer()
        self._watch: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server
        self._metrics_server: Any

    # ------------------------------------------------------------------------------ starting

    async def listen(self) -> tuple[Address, Address]:
        """Bind both ports and answer NOT_SERVING.

        Returns:
            The real addresses of gRPC and of the metrics.

        Raises:
            OSError: A port cannot be had, or the TLS files are none.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        metrics_address = self._start_metrics()
        self._server = grpc.aio.server(interceptors=self._interceptors(), options=SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        servicer = CloudDenoiser(self._service, version=importlib.metadata.version("ecdiff"))
        ecdiff_v1_pb2_grpc.add_CloudDenoiserServicer_to_server(servicer, self._server)
        address = self._bind()
        await self._server.start()
        return address, metrics_address

    async def load(self) -> str:
        """Load the model and say SERVING.

        Returns:
            The model's name.

        Raises:
            ValueError: It is no model that can be run here.
            OSError: It cannot be read or fetched.
            MemoryError: There is no room for it.
        """
        started = time.monotonic()
        _log.info("loading", extra={"model": self._config.model})
        self._service.served = served = await self._engine.start()
        info = served.model.info
        _log.info(
            "serving",
            extra={
                "model": info.name,
                "device": info.device,
                "dtype": info.dtype,
                "load_seconds": round(time.monotonic() - started, 3),
            },
        )
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._watch = asyncio.create_task(self._watch_device())
        return info.name

    def _start_metrics(self) -> Address:
        wanted = self._config.metrics_listen
        try:
            self._metrics_server, _thread = prometheus_client.start_http_server(
                wanted.port, addr=wanted.host, registry=self.metrics.registry
            )
        except OSError as error:
            raise OSError(f"cannot listen on {wanted} for metrics: {error.strerror}") from error
        return Address(host=wanted.host, port=self._metrics_server.server_port)

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        token = self._config.auth_token
        return [] if token is None else [TokenInterceptor(token, on_refused=self.metrics.rejected)]

    def _bind(self) -> Address:
        wanted, tls = self._config.listen, self._config.tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(str(wanted))
            else:
                port = self._server.add_secure_port(str(wanted), _credentials(tls))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {wanted}: {_why_not(wanted, tls)}") from error
        return Address(host=wanted.host, port=port)

    # ------------------------------------------------------------------------------ stopping

    async def drain(self) -> None:
        """Say NOT_SERVING, let running sessions finish within the grace period, and stop."""
        _log.info("draining", extra={"sessions": self._registry.num_running})
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        await self._registry.drain(self._config.grace_seconds)
        # The metrics server looks up from its socket twice a second only.
        stopping = self._server.stop(self._config.timings.last_words_seconds)
        await asyncio.gather(stopping, asyncio.to_thread(self._stop_metrics))
        if self._service.served is not None:
            await self._engine.stop()

    # ------------------------------------------------------------------------------ health

    async def _watch_device(self) -> None:
        """Say NOT_SERVING while the device hangs: the event loop lives on and would heartbeat for ever."""
        stuck = False
        while True:
            await asyncio.sleep(self._config.timings.watch_seconds)
            if self._engine.stuck is stuck:
                continue
            stuck = not stuck
            if stuck:
                _log.error("the device hangs", extra={"step_seconds": self._engine.step_seconds})
                await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            else:
                _log.info("the device is back")
                await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", _SERVICE_NAME):
            await self._health.set(name, status)

    def _stop_metrics(self) -> None:
        self._metrics_server.shutdown()
        self._metrics_server.server_close()

    def _on_death(self) -> None:
        self._registry.fail_all(ModelError("the cloud's device thread died"))
        self.died.set()


def _why_not(wanted: Address, tls: TlsFiles | None) -> str:
    """Return why the port could not be opened; gRPC does not tell."""
    if tls is not None and (complaint := _tls_complaint(tls)):
        return complaint
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(address)
    except OSError as error:
        return str(error.strerror)
    return "the port was in use a moment ago"


def _tls_complaint(tls: TlsFiles) -> str:
    """Return what is wrong with the files, empty where nothing is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    complaint = f"{tls.cert} and {tls.key} are no PEM certificate and its unencrypted key"
    try:
        # An empty password: nobody is asked for one on the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
        if tls.client_ca is not None:
            complaint = f"{tls.client_ca} holds no PEM certificate"
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError:
        return complaint
    return ""


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


async def run(config: ServerConfig) -> int:
    """Serve until a signal, or the end of standard input if so configured.

    Returns:
        The process's exit code: 0 after SIGTERM or the end of standard input, 130 after SIGINT, 1 when the
        device thread died.

    Raises:
        OSError: A port or the model cannot be had.
        ValueError: The model cannot be run here.
        MemoryError: The model does not fit.
    """
    stop = _Stop()
    server = CloudServer(config, lambda: load_model(config.model, device=config.device, dtype=config.dtype))
    address, metrics_address = await server.listen()
    _say(f"cloud-service listening on {address} metrics on {metrics_address}")
    if config.exit_with_stdin:
        stop.when_stdin_ends()
    loading = asyncio.create_task(server.load())
    stopping = asyncio.create_task(stop.requested.wait())
    died = asyncio.create_task(server.died.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        _say(f"cloud-service serving {loading.result()}")
        # The imports left a few hundred thousand objects that never die; no collection has to walk them again.
        gc.freeze()
        await asyncio.wait({stopping, died}, return_when=asyncio.FIRST_COMPLETED)
    else:
        loading.cancel()
    await server.drain()
    return 1 if server.died.is_set() else stop.exit_code


class _Stop:
    """Reasons to stop: the first asks politely, a second signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.exit_code = 0
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)

    def when_stdin_ends(self) -> None:
        """Stop when whoever holds the other end of standard input is gone."""

        def watch() -> None:
            # os.read: a thread inside sys.stdin would hold a lock that the interpreter's end wants.
            while os.read(sys.stdin.fileno(), 4096):
                pass
            self._loop.call_soon_threadsafe(self.requested.set)

        threading.Thread(target=watch, name="stdin", daemon=True).start()

    def _on_signal(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            os._exit(1)
        self.exit_code = 130 if number is signal.SIGINT else 0
        self.requested.set()


def _say(line: str) -> None:
    print(line, flush=True)
