"""The two ports of a service: gRPC with its health, and the metrics that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio
import prometheus_client
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wire.channel import SERVER_OPTIONS, ChannelOptions
from wire.serving.address import Address
from wire.serving.parsing import ParsingInterceptor
from wire.serving.tls import ServedCertificate, TlsFiles


class Ports:
    """Ports first, so that clients see NOT_SERVING while a service gets ready; then SERVING.

    Args:
        service_name: Full name of the gRPC service, for its health.
        listen: Where gRPC listens.
        metrics_listen: Where Prometheus scrapes.
        registry: What it scrapes.
        tls: None for plaintext.
        interceptors: Of every call.
        options: Of the gRPC server.
    """

    def __init__(
        self,
        service_name: str,
        *,
        listen: Address,
        metrics_listen: Address,
        registry: prometheus_client.CollectorRegistry,
        tls: TlsFiles | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: ChannelOptions = SERVER_OPTIONS,
    ) -> None:
        self._names = ("", service_name)
        self._listen, self._metrics_listen = listen, metrics_listen
        self._registry = registry
        self._tls = tls
        # Last, so that it is the method's own handler whose reading it replaces.
        self._interceptors = (*interceptors, ParsingInterceptor())
        self._options = options
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server
        self._metrics_server: Any

    async def open(self, register: Callable[[grpc.aio.Server], None]) -> tuple[Address, Address]:
        """Bind both ports and answer NOT_SERVING.

        Args:
            register: Adds the service's methods to the server.

        Returns:
            The real addresses of gRPC and of the metrics.

        Raises:
            OSError: A port cannot be had, or the TLS files are none.
        """
        await self.set_serving(False)
        metrics_address = self._open_metrics()
        self._server = grpc.aio.server(interceptors=self._interceptors, options=self._options)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        register(self._server)
        address = self._bind()
        await self._server.start()
        return address, metrics_address

    async def set_serving(self, serving: bool) -> None:
        """Say SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def refuse(self) -> None:
        """Say NOT_SERVING for good: the service goes down."""
        await self._health.enter_graceful_shutdown()

    async def close(self, grace_seconds: float) -> None:
        """Close both ports; calls that still run get the grace period."""
        # The metrics server looks up from its socket twice a second only.
        await asyncio.gather(self._server.stop(grace_seconds), asyncio.to_thread(self._close_metrics))

    def _open_metrics(self) -> Address:
        wanted = self._metrics_listen
        try:
            self._metrics_server, _thread = prometheus_client.start_http_server(
                wanted.port, addr=wanted.host, registry=self._registry
            )
        except OSError as error:
            raise OSError(f"cannot listen on {wanted} for metrics: {error.strerror} (--metrics-listen)") from error
        return Address(host=wanted.host, port=self._metrics_server.server_port)

    def _close_metrics(self) -> None:
        self._metrics_server.shutdown()
        self._metrics_server.server_close()

    def _bind(self) -> Address:
        wanted, tls = self._listen, self._tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(str(wanted))
            else:
                certificate = ServedCertificate(tls)
                certificate.publish(self._registry)
                port = self._server.add_secure_port(str(wanted), certificate.credentials())
        except ValueError as error:
            raise OSError(f"cannot listen on {wanted}: {error}") from error
        except RuntimeError as error:
            raise OSError(f"cannot listen on {wanted}: {_why_not(wanted)}") from error
        return Address(host=wanted.host, port=port)


def _why_not(wanted: Address) -> str:
    """Return why the port could not be opened; gRPC does not tell."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(address)
    except OSError as error:
        return str(error.strerror)
    return "the port was in use a moment ago"
