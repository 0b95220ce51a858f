"""The system in containers: images built from the checkout, started and stopped by Compose on a real Docker Engine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.errors import APIError, ImageNotFound
from docker.models.containers import Container
from PIL import Image

from harness.scrape import Scrape
from harness.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OURS = ("cloud", "orchestrator", "edge")
# Grafana cannot be stood in for; its dashboards' queries are run, and its provisioning is checked by the unit tests.
WATCHED = (*OURS, "prometheus")
_BUILD_SECONDS = 1800
_METRICS_PORTS = {"cloud": 9101, "orchestrator": 9102, "edge": 9103}
_OUT = ROOT / "out" / "docker-test"


def tell(text: str) -> None:
    """Say something past pytest's capture: a run's timings are one of its results."""
    print(text, file=sys.__stdout__, flush=True)


def engine() -> docker.DockerClient:
    """Return a client of the Docker Engine; skips where none answers."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    # Asked by the program: the library leaves its socket open where nobody answers.
    asked = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"no Docker Engine answers: {asked.stderr.strip().splitlines()[-1]}")
    return docker.from_env(timeout=120)


def compose_command() -> list[str]:
    """Return `docker compose` or `docker-compose`; skips where there is neither."""
    asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if asked.returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose") is None:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    return ["docker-compose"]


def have_image(client: docker.DockerClient, name: str) -> bool:
    """Whether the Engine has the image, or can pull it."""
    try:
        client.images.get(name)
    except ImageNotFound:
        try:
            client.images.pull(name)
        except APIError:
            return False
    return True


@functools.cache
def revision() -> str:
    """Return the commit that is checked out, the same for a whole run of the tests."""
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()


def base_image() -> str:
    """Return the image that deploy/Dockerfile starts from."""
    first = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("FROM "))
    return first.split()[1]


def prometheus_image() -> str:
    """Return the image that deploy/compose.yaml runs."""
    return str(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prometheus"]["image"])


@contextlib.contextmanager
def prometheus_or_stand_in(client: docker.DockerClient) -> Iterator[None]:
    """Have the image of Prometheus: the real one, or where it cannot be pulled one of this machine's own program.

    The stand-in bears the real one's name while the block lasts; skips where this machine has no Prometheus either.
    """
    name = prometheus_image()
    if have_image(client, name):
        yield
        return
    programs = [shutil.which(program) for program in ("prometheus", "promtool")]
    if None in programs:
        pytest.skip(f"{name} cannot be pulled, and no prometheus and promtool are installed here to stand in for it")
    with tempfile.TemporaryDirectory() as folder:
        for program in programs:
            shutil.copy(str(program), folder)
        recipe = (
            f"FROM {base_image()}\nCOPY prometheus promtool /bin/\n"
            "RUN mkdir /prometheus && chown 65534:65534 /prometheus\n"
            'USER 65534:65534\nENTRYPOINT ["/bin/prometheus"]\n'
        )
        (Path(folder) / "Dockerfile").write_text(recipe)
        client.images.build(path=folder, tag=name, rm=True)
    yield
    client.images.remove(name, force=True)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


class Stack:
    """One Compose project.

    Args:
        client: Of the Engine.
        project: Its name; containers, networks and volumes bear it.
        files: Compose files, in deploy/.
        environment: What they are told besides.
    """

    def __init__(
        self,
        client: docker.DockerClient,
        project: str,
        files: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.client = client
        self.project = project
        self.prometheus_port = free_port()
        self.healthy_seconds: dict[str, float] = {}
        self._compose = compose_command()
        self._environment = os.environ | {
            "COMPOSE_FILE": os.pathsep.join(str(DEPLOY / file) for file in files),
            "COMPOSE_PROJECT_NAME": project,
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "REVISION": revision(),
            # Everything comes from deploy/wheels: the same build with and without a network.
            "PIP_NO_INDEX": "1",
            **(environment or {}),
        }

    @property
    def prometheus_url(self) -> str:
        """Where this machine reaches the project's Prometheus."""
        return f"http://127.0.0.1:{self.prometheus_port}"

    def compose(self, *words: str, timeout_seconds: float = 120) -> str:
        """Run Compose; its output is in the failure, should it come to one."""
        done = subprocess.run(
            [*self._compose, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def build(self) -> float:
        """Build the three images of this checkout; return the seconds it took."""
        started = time.monotonic()
        subprocess.run(["make", "wheels"], cwd=ROOT, check=True, capture_output=True, timeout=_BUILD_SECONDS)
        self.compose("build", *OURS, timeout_seconds=_BUILD_SECONDS)
        return time.monotonic() - started

    def up(self, *services: str) -> float:
        """Start services from built images; return the seconds until the last of them is healthy."""
        for folder in (_OUT.parent, _OUT):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o1777)
        started = time.monotonic()
        self.compose("up", "--detach", "--no-build", *services, timeout_seconds=180)
        for name in services:
            wait_until(lambda name=name: self.health(name) == "healthy", f"{name} healthy")  # type: ignore[misc]
            self.healthy_seconds[name] = time.monotonic() - started
        return time.monotonic() - started

    @contextlib.contextmanager
    def running(self, *services: str) -> Iterator[float]:
        """Have services healthy for a block, from nothing and to nothing; gives the seconds that it took."""
        self.down()
        try:
            yield self.up(*services)
        finally:
            self.down()

    def down(self) -> None:
        """Remove everything of the project, its data included."""
        self.compose("down", "--volumes", "--remove-orphans", timeout_seconds=300)

    def container(self, service: str) -> Container:
        """Return the service's container, running or not."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        (container,) = self.client.containers.list(all=True, filters={"label": labels})
        return container

    def health(self, service: str) -> str:
        """Return what the health check says: starting, healthy or unhealthy."""
        return str(self.container(service).attrs["State"]["Health"]["Status"])

    def scrape(self, service: str) -> Scrape:
        """Return what one of ours tells Prometheus."""
        url = f"http://127.0.0.1:{_METRICS_PORTS[service]}/metrics"
        program = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).read().decode())"
        code, output = self.container(service).exec_run(["python", "-c", program])
        assert code == 0, output
        return Scrape(output.decode())

    def generate(self, name: str, *options: str) -> Any:
        """Draw a picture from inside the edge container; return its report, the picture checked on the host."""
        for suffix in ("png", "json"):
            (_OUT / f"{name}.{suffix}").unlink(missing_ok=True)
        started = time.monotonic()
        files = ("-o", f"/out/{_OUT.name}/{name}.png", "--report", f"/out/{_OUT.name}/{name}.json")
        self.compose("exec", "-T", "edge", "edge-client", "generate", "red apple, fluent style", *files, *options)
        tell(f"{name}: picture after {time.monotonic() - started:.1f} s")
        with Image.open(_OUT / f"{name}.png") as picture:
            picture.verify()
        return json.loads((_OUT / f"{name}.json").read_text())

    def leftovers(self) -> list[str]:
        """Return the names of what the Engine still has of the project."""
        of_project = {"label": f"com.docker.compose.project={self.project}"}
        containers = self.client.containers.list(all=True, filters=of_project)
        networks = self.client.networks.list(filters=of_project)
        volumes = self.client.volumes.list(filters=of_project)
        return [str(each.name) for each in (*containers, *networks, *volumes)]
