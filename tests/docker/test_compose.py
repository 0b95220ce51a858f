"""What `make up` starts, on a real Engine: built, healthy, drawing, watched, killed, restarted and gone."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator

import docker
import pytest

from harness.dashboards import all_panels, queries_without_data
from harness.engine import OURS, WATCHED, Stack, revision, tell
from harness.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]
MODES = {
    "cloud": (),
    "edge": (),
    "split": ("--steps", "40,10"),
    "ecdiff": (),
    "adaptive": ("--deadline-ms", "60000", "--corrections", "final"),
}
START_SECONDS = 60
SCRAPE_SECONDS = 5
WINDOW_SECONDS = 600
# Long enough to be killed in.
LONG = ("--mode", "cloud", "--num-inference-steps", "300")


@pytest.fixture(scope="module")
def stack(client: docker.DockerClient, images: float) -> Iterator[Stack]:
    stack = Stack(client, "ecdiff-test", ("compose.yaml",))
    with stack.running(*WATCHED) as seconds:
        tell(f"\nimages built in {images:.0f} s; all healthy {seconds:.1f} s after up: {stack.healthy_seconds}")
        yield stack


def sessions(stack: Stack) -> float:
    return stack.scrape("cloud").value("ecdiff_cloud_sessions")


def replica_up(stack: Stack) -> float:
    return stack.scrape("orchestrator").value("ecdiff_fleet_replica_up", replica="cloud:50051")


def test_everything_is_healthy_within_a_minute(stack: Stack) -> None:
    assert {name: stack.health(name) for name in WATCHED} == dict.fromkeys(WATCHED, "healthy")
    assert max(stack.healthy_seconds.values()) < START_SECONDS


def test_containers_are_closed(stack: Stack) -> None:
    for name in OURS:
        attributes = stack.container(name).attrs
        host = attributes["HostConfig"]
        assert attributes["Config"]["User"] == "10001:10001"
        assert host["ReadonlyRootfs"]
        assert host["Init"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert not any(attributes["NetworkSettings"]["Ports"].values()), name
    published = stack.container("prometheus").attrs["NetworkSettings"]["Ports"]
    assert {binding["HostIp"] for bindings in published.values() for binding in bindings or ()} == {"127.0.0.1"}


def test_images_say_what_they_are(stack: Stack) -> None:
    for name in OURS:
        image = stack.container(name).image
        labels = {key.rpartition(".")[2]: value for key, value in image.labels.items()}
        assert (labels["version"], labels["licenses"], labels["revision"]) == ("0.1.0", "Apache-2.0", revision())
        tell(f"image {name}: {image.attrs['Size'] / 1e6:.0f} MB")


def test_the_orchestrator_has_no_torch_and_imports_all_of_itself(stack: Stack) -> None:
    asked = "[importlib.util.find_spec(name) for name in ('torch', 'diffusers')]"
    program = f"import importlib.util, orchestrator.service.server; print({asked})"
    code, output = stack.container("orchestrator").exec_run(["python", "-c", program])
    assert (code, output.decode().strip()) == (0, "[None, None]")


def test_a_picture_drawn_in_the_edge_container_lands_on_the_host(stack: Stack) -> None:
    report = stack.generate("adaptive")
    assert report["mode"] == "adaptive"
    assert report["fallbacks"] == []
    assert report["nfe"]["cloud"] > 0


def test_the_cloud_killed_during_a_generation_costs_no_picture(stack: Stack) -> None:
    def kill() -> None:
        wait_until(lambda: sessions(stack) > 0, "a session")
        stack.container("cloud").kill()

    killer = threading.Thread(target=kill)
    killer.start()
    report = stack.generate("killed", *LONG)
    killer.join()
    assert report["handoff"]["reason"] == "cloud_lost"
    assert report["fallbacks"]
    assert stack.scrape("edge").value("ecdiff_handoffs_total", reason="cloud_lost") == 1


def test_a_restarted_cloud_is_used_again(stack: Stack) -> None:
    wait_until(lambda: replica_up(stack) == 0, "the orchestrator sees it down")
    started = time.monotonic()
    stack.compose("start", "cloud")
    wait_until(lambda: stack.health("cloud") == "healthy", "the cloud healthy again")
    wait_until(lambda: replica_up(stack) == 1, "the orchestrator sees it up")
    tell(f"the restarted cloud is back in the fleet after {time.monotonic() - started:.1f} s")
    seen: list[float] = []
    watcher = threading.Thread(target=lambda: seen.append(wait_until(lambda: sessions(stack), "a session")))
    watcher.start()
    report = stack.generate("restarted", *LONG)
    watcher.join()
    assert report["fallbacks"] == []
    assert seen == [1.0]
    wait_until(lambda: sessions(stack) == 0, "no session")


def test_every_dashboard_query_returns_data(stack: Stack) -> None:
    for _ in range(2):  # a series that comes into being has no rate before it moves again
        for mode, options in MODES.items():
            stack.generate(mode, "--mode", mode, *options)
        time.sleep(2 * SCRAPE_SECONDS)
    wait_until(lambda: not queries_without_data(stack.prometheus_url, WINDOW_SECONDS), "data for every query", 30)
    tell(f"every one of {len(list(all_panels()))} panels has data for all its queries")
    shown = subprocess.check_output(
        ["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"], text=True
    )
    tell("".join(line for line in shown.splitlines(keepends=True) if line.startswith(stack.project)))


def test_services_stop_when_they_are_told_to(stack: Stack) -> None:
    for name in OURS:
        container = stack.container(name)
        started = time.monotonic()
        container.stop(timeout=45)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0, name
        tell(f"{name} stopped in {time.monotonic() - started:.1f} s")


def test_down_leaves_nothing(stack: Stack) -> None:
    stack.down()
    assert stack.leftovers() == []
