"""Ray Serve in the test run: started once, its replicas as the tests want them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import prometheus_client
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cloud_service.config import ServerConfig
from deploy.ray.application import NAME, application, start_ray
from deploy.ray.config import RayConfig, prepare_environment
from deploy.ray.metrics import registry_of
from harness.paced import tiny_model
from harness.programs import ENVIRONMENT
from harness.ray_replica import HeldReplica
from harness.reference import CLOUD_MODEL
from harness.scrape import Scrape
from harness.waiting import eventually
from wire.serving.address import Address

CALL_SECONDS = 60.0
# More than any test opens: admission is the replica's, and its configuration changes under Ray.
MOST_SESSIONS = 64


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket(socket.AF_INET6) as trial:
        trial.bind(("::", 0))
        return int(trial.getsockname()[1])


class RayServe:
    """One Ray on this machine, with one application."""

    def __init__(self) -> None:
        self.address = Address(host="127.0.0.1", port=free_port())
        self._config = RayConfig(port=self.address.port, cpus_per_replica=0.1, max_replicas=4)
        self._deployed: RayConfig | None = None
        self._replicas: DeploymentHandle
        # Ray's own ways to wait refuse to run beside an event loop.
        self._thread = ThreadPoolExecutor(1)
        os.environ.update(ENVIRONMENT)
        prepare_environment()
        start_ray(self._config)

    def deploy(self, *, max_sessions: int = MOST_SESSIONS, **options: Any) -> None:
        """Have replicas as `RayConfig` says; those that run already stay."""
        config = dataclasses.replace(self._config, **({"max_replicas": 1} | options))
        if config == self._deployed:
            return
        server = ServerConfig(
            model=str(CLOUD_MODEL),
            listen=self.address,
            metrics_listen=Address(host="127.0.0.1", port=0),
            max_sessions=max_sessions,
            grace_seconds=5.0,
        )
        app = application(server, config, log_level="info", replica=HeldReplica)
        self._replicas = self._thread.submit(serve.run, app, name=NAME, route_prefix=f"/{NAME}").result()
        self._deployed = config

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every replica and return their answers."""
        return self._thread.submit(
            lambda: self._replicas.broadcast(method, *arguments).results(timeout_s=CALL_SECONDS)
        ).result()

    def ask_living(self, method: str, *arguments: Any) -> list[Any]:
        """The same, of those that answer."""
        return self._thread.submit(
            lambda: [
                answer
                for answer in self._replicas.broadcast(method, *arguments).results(
                    timeout_s=CALL_SECONDS, return_exceptions=True
                )
                if not isinstance(answer, Exception)
            ]
        ).result()

    async def ask_meanwhile(self, method: str, *arguments: Any) -> list[Any]:
        """The same while the test's own loop runs on."""
        return await self._replicas.broadcast(method, *arguments).results_async(timeout_s=CALL_SECONDS)

    def scrape(self) -> Scrape:
        """The series of all replicas."""
        series = registry_of(self._replicas)
        return Scrape(self._thread.submit(prometheus_client.generate_latest, series).result().decode())

    def shutdown(self) -> None:
        serve.shutdown()
        ray.shutdown()


_running: list[RayServe] = []


def ray_serve() -> RayServe:
    """The test run's Ray, started now where it does not run."""
    if not _running:
        _running.append(RayServe())
    return _running[0]


def shut_down() -> None:
    """End it."""
    for each in _running:
        each.shutdown()
    _running.clear()


class HeldModel:
    """The replica's model: its pace is set from here; what it computes is asked of its twin in this process."""

    def __init__(self, ray_serve: RayServe) -> None:
        self.__dict__["_ray_serve"] = ray_serve

    def pace(self) -> None:
        self._ray_serve.ask("call_model", "pace")

    def permit(self, count: int = 1) -> None:
        self._ray_serve.ask("call_model", "permit", count)

    def run_freely(self) -> None:
        self._ray_serve.ask("call_model", "run_freely")

    def forget(self) -> None:
        self._ray_serve.ask("call_model", "forget")

    @property
    def num_begun(self) -> int:
        return int(self._ray_serve.ask("get_model", "num_begun")[0])

    @property
    def batch_sizes(self) -> list[int]:
        return list(self._ray_serve.ask("get_model", "batch_sizes")[0])

    async def begun(self, count: int) -> None:
        """Wait until `count` evaluations have begun since `forget`."""
        await eventually(lambda: self.num_begun >= count, f"{count} evaluations")

    def __setattr__(self, name: str, value: object) -> None:
        self._ray_serve.ask("set_model", name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny_model(), name)


class RayCloud:
    """A service on Ray Serve, as the tests of the plain one handle theirs."""

    def __init__(self, ray_serve: RayServe) -> None:
        self.address = ray_serve.address
        self.model = HeldModel(ray_serve)
        self._ray_serve = ray_serve

    def sample(self, name: str, **labels: str) -> float:
        """The value of one series."""
        return self._ray_serve.scrape().value(name, **labels)

    async def drain(self) -> None:
        """As on SIGTERM."""
        await self._ray_serve.ask_meanwhile("drain")


@contextlib.asynccontextmanager
async def running_replica(config: ServerConfig) -> AsyncIterator[RayCloud]:
    """Run a fresh service in the one replica."""
    here = ray_serve()
    here.deploy()
    here.ask("begin", config)
    cloud = RayCloud(here)
    try:
        yield cloud
    finally:
        await here.ask_meanwhile("end")
