"""A run worth looking at, and what the dashboards show of it: `python -m bench.dashboards.scenario -o FOLDER`.

Two clouds, each behind an emulated link; an agent on each; an orchestrator; Debian's Prometheus with the committed
configuration. Both agents make pictures in every mode all the time, while:

    fibre     both links are fibre
    dsl       the second agent's link becomes dsl
    mobile    it becomes mobile
    killed    the second cloud is killed in the middle of whatever it does; its agent goes over to the first one
    back      it is started again, and its link is fibre
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from bench.dashboards.drawing import draw
from bench.dashboards.panels import read_dashboards
from bench.dashboards.prometheus import Prometheus

_REPOSITORY = Path(__file__).resolve().parents[2]
_FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
_PROMPTS = ("red apple, fluent style", "spiral shell, blob style", "dolphin, fluent style", "hot pepper, noto style")
_ASKED = (
    ("--mode", "adaptive"),
    ("--mode", "ecdiff"),
    ("--mode", "adaptive", "--deadline-ms", "2500"),
    ("--mode", "split", "--steps", "30,20"),
    ("--mode", "adaptive", "--latents-codec", "int8-block"),
    ("--mode", "cloud", "--num-inference-steps", "20"),
    ("--mode", "edge"),
)
_NUM_POINTS = 240
_PAUSE_SECONDS = 1.0
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 60.0
# Processes share two cores here, and sums come out the same.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Processes:
    """Starts processes in a folder; all of them are killed in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start one whose standard output is read here."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # the emulated network ends with its input
            stdout=subprocess.PIPE,
            stderr=(self.folder / f"{len(self._running):02}.log").open("w"),
            text=True,
            cwd=_REPOSITORY,
            env=os.environ | _ENVIRONMENT,
        )
        self._running.append(process)
        return process

    def service(self, module: str, *arguments: str) -> Service:
        """Start one of the services and wait until it serves."""
        process = self.start(sys.executable, "-m", module, "serve", *arguments)
        words = _line(process).split()
        _line(process)
        return Service(process, address=words[3], metrics_address=words[6])


class Service:
    """A service that serves."""

    def __init__(self, process: subprocess.Popen[str], *, address: str, metrics_address: str) -> None:
        self.process, self.address, self.metrics_address = process, address, metrics_address


class Way:
    """The emulated link in front of a cloud; its address stays when the link changes, open connections do not."""

    def __init__(self, processes: Processes, target: str, link: str) -> None:
        self._processes, self.target = processes, target
        self.address = "127.0.0.1:0"
        self._open(link)

    def become(self, link: str) -> None:
        """Cut what is open; what is opened from now on goes over `link`."""
        self._process.kill()
        self._process.wait()
        self._open(link)

    def _open(self, link: str) -> None:
        module = (sys.executable, "-m", "bench.network")
        self._process = self._processes.start(*module, "--to", self.target, "--link", link, "--listen", self.address)
        self.address = _line(self._process).split()[-1]


@click.command(help=__doc__.replace("\n\n    fibre", "\n\n\b\n    fibre"))
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="For the PNGs.")
@click.option("--phase-seconds", type=click.IntRange(20), default=120, show_default=True, help="Each of the five.")
def main(output: Path, phase_seconds: int) -> None:
    """Run the scenario and draw the dashboards."""
    if shutil.which("prometheus") is None:
        raise click.ClickException("there is no `prometheus` here: install Debian's package")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        prometheus, marks = _run(processes, phase_seconds)
        now = time.time()
        window = prometheus.window(now, now - min(marks.values()), _NUM_POINTS)
        for dashboard in read_dashboards():
            path = output / f"{dashboard.name}.png"
            empty = draw(dashboard, prometheus, window, path, marks)
            click.echo(f"wrote {path}" + (f"; no data: {', '.join(empty)}" if empty else ""))


def _run(processes: Processes, phase_seconds: int) -> tuple[Prometheus, dict[str, float]]:
    """Play the scenario; return who watched it, and when each phase began, Unix seconds."""
    first, second = (processes.service("cloud_service", *_FREE_PORTS) for _ in range(2))
    near, far = (Way(processes, cloud.address, "fibre") for cloud in (first, second))
    orchestrator = processes.service("orchestrator", *_FREE_PORTS, "--cloud", f"{near.address},{far.address}")
    asks = ("--orchestrator", orchestrator.address)
    agents = [
        processes.service("edge_client", *_FREE_PORTS, *asks, "--cloud", clouds)
        for clouds in (near.address, f"{far.address},{near.address}")
    ]
    prometheus = _watch(
        processes,
        cloud=[first, second],
        edge=agents,
        orchestrator=[orchestrator],
    )

    def become(link: str) -> None:
        # Between two generations: an agent that loses its cloud at work goes over to the other one, and stays there.
        _wait_until(second, busy=False)
        far.become(link)

    def kill() -> None:
        _wait_until(second, busy=True)
        second.process.kill()

    def bring_back() -> None:
        host_and_port = ("--listen", second.address, "--metrics-listen", second.metrics_address)
        processes.service("cloud_service", *host_and_port)
        far.become("fibre")

    phases: dict[str, Callable[[], None]] = {
        "fibre": lambda: None,
        "dsl": lambda: become("dsl"),
        "mobile": lambda: become("mobile"),
        "killed": kill,
        "back": bring_back,
    }
    marks = {}
    with _customers(processes.folder, agents):
        for name, begin in phases.items():
            begin()
            marks[name] = time.time()
            click.echo(name)
            time.sleep(phase_seconds)
    return prometheus, marks


def _wait_until(cloud: Service, *, busy: bool) -> None:
    """Wait until a session is open there, or none is."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://{cloud.metrics_address}/metrics") as answer:
            if ("\necdiff_cloud_sessions 0.0" not in answer.read().decode()) is busy:
                return
        time.sleep(_POLL_SECONDS)
    raise click.ClickException(f"nobody {'uses' if busy else 'leaves'} the cloud at {cloud.address}")


def _watch(processes: Processes, **services: list[Service]) -> Prometheus:
    """Start Prometheus with the committed configuration, its targets being these services by job."""
    source, folder = _REPOSITORY / "deploy" / "prometheus", processes.folder
    shutil.copytree(source / "rules", folder / "rules")
    text = (source / "prometheus.yml").read_text()
    for job, port in (("cloud", 9101), ("edge", 9103), ("orchestrator", 9102)):
        committed = f'["{job}:{port}"]'
        assert committed in text
        text = text.replace(committed, str([service.metrics_address for service in services[job]]))
    (folder / "prometheus.yml").write_text(text)
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    processes.start(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    return Prometheus(f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def _customers(folder: Path, agents: list[Service]) -> Iterator[None]:
    """Let somebody make pictures at every agent while the block runs, each in all modes in turn."""
    over = threading.Event()

    def make_pictures(agent: Service, offset: int) -> None:
        environment = os.environ | _ENVIRONMENT | {"ECDIFF_AGENT": agent.address}
        picture = str(folder / f"{offset}.png")
        for number in itertools.count(offset):
            prompt, options = _PROMPTS[number % len(_PROMPTS)], _ASKED[number % len(_ASKED)]
            command = [sys.executable, "-m", "edge_client", "generate", prompt, *options]
            ran = subprocess.run(
                [*command, "--seed", str(number), "-o", picture, "--quiet"],
                env=environment,
                cwd=_REPOSITORY,
                capture_output=True,
                text=True,
            )
            if ran.returncode:
                click.echo(f"{agent.address}: {ran.stderr.strip()}", err=True)
            if over.wait(_PAUSE_SECONDS):
                return

    threads = [threading.Thread(target=make_pictures, args=(agent, index)) for index, agent in enumerate(agents)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise click.ClickException(f"{' '.join(map(str, process.args))} ended with status {process.wait()}")  # type: ignore[arg-type]
    return line


if __name__ == "__main__":
    main()
