"""The process that starts Ray Serve with the replicas, stays with them, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import prometheus_client
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cloud_service.config import LOGGER_NAME, ServerConfig
from deploy.ray.application import NAME, application, start_ray
from deploy.ray.config import RayConfig
from deploy.ray.metrics import registry_of
from wire.serving.address import Address
from wire.serving.stop import Stop

_log = logging.getLogger(LOGGER_NAME)
# Beside the grace period, for a replica's answer that it is empty.
_ANSWER_SECONDS = 5.0


def run(server: ServerConfig, config: RayConfig, *, log_level: str) -> int:
    """Serve until a signal, or the end of standard input if so configured.

    Returns:
        The process's exit code: 0 after SIGTERM or the end of standard input, 130 after SIGINT.

    Raises:
        OSError: A port cannot be had, or no Ray answers at the cluster's address.
        ValueError: No replica can be started; its log says why.
    """
    if config.cluster is None:
        _check_free(config.port)
    start_ray(config)
    try:
        return asyncio.run(_serve(server, application(server, config, log_level=log_level)))
    finally:
        serve.shutdown()
        ray.shutdown()


async def _serve(server: ServerConfig, app: serve.Application) -> int:
    stop = Stop()
    if server.exit_with_stdin:
        stop.when_stdin_ends()
    starting = asyncio.create_task(asyncio.to_thread(_deploy, app))
    stopping = asyncio.create_task(stop.requested.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        replicas = starting.result()
        with _metrics_port(server.metrics_listen, replicas) as metrics_address:
            _say(f"cloud-service listening on {server.listen} metrics on {metrics_address}")
            _say(f"cloud-service serving {server.model}")
            await stopping
            await _drain(replicas, server.grace_seconds)
    return stop.exit_code


def _deploy(app: serve.Application) -> DeploymentHandle:
    try:
        return serve.run(app, name=NAME, route_prefix=f"/{NAME}")
    except RuntimeError as error:
        raise ValueError(f"no replica can be started: {error}") from error


async def _drain(replicas: DeploymentHandle, grace_seconds: float) -> None:
    """Let nobody in, and wait until the running sessions have finished."""
    answers = replicas.broadcast("drain")
    for answer in await answers.results_async(timeout_s=grace_seconds + _ANSWER_SECONDS, return_exceptions=True):
        if isinstance(answer, Exception):
            _log.warning("a replica does not drain", extra={"reason": str(answer)})


@contextlib.contextmanager
def _metrics_port(listen: Address, replicas: DeploymentHandle) -> Iterator[Address]:
    try:
        server, _thread = prometheus_client.start_http_server(
            listen.port, addr=listen.host, registry=registry_of(replicas)
        )
    except OSError as error:
        raise OSError(f"cannot listen on {listen} for metrics: {error.strerror} (--metrics-listen)") from error
    try:
        yield Address(host=listen.host, port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()


def _check_free(port: int) -> None:
    """Complain now of a port in use; Ray would share it."""
    with socket.socket(socket.AF_INET6) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("::", port))
        except OSError as error:
            raise OSError(f"cannot listen on port {port}: {error.strerror} (--port)") from error


def _say(line: str) -> None:
    print(line, flush=True)
