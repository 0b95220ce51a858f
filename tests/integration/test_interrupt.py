"""Ctrl-C, and an edge that is killed: the cloud's session is freed, and no process stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from PIL import Image

from harness.cloud import RunEdge, StartCloud
from harness.processes import children, is_gone, listening_addresses
from harness.programs import Program, Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.scrape import Scrape
from harness.waiting import wait_until

INTERRUPTED = 130
# Long enough not to end by itself while a test looks.
ENDLESS = ("--mode", "cloud", "--num-inference-steps", "900")


def test_interrupt_frees_the_clouds_session(
    programs: Programs, start_cloud: StartCloud, run_edge: RunEdge, tmp_path: Path
) -> None:
    cloud = start_cloud()
    cloud.unet.hold_after(3)
    address = ("--cloud", cloud.address, "--edge-model", str(EDGE_MODEL))
    edge = programs.forked("edge_client", "generate", "a cat", *ENDLESS, *address, folder=tmp_path)
    wait_until(lambda: cloud.unet.holding, "the cloud to be at the fourth step")
    assert cloud.num_sessions() == 1
    edge.signal(signal.SIGINT)
    done = edge.wait()
    assert done.returncode == INTERRUPTED
    assert done.stderr.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*.png")) == []
    wait_until(cloud.is_empty, "the session to be freed")
    cloud.unet.open()
    # A second generation takes turns with the first one, if that still ran: it does not.
    assert run_edge("generate", "a cat", "--mode", "cloud", "--num-inference-steps", "5", *address).returncode == 0
    assert cloud.nfe()["cloud"] - 5 in (3, 4)


def generate_on_own_cloud(programs: Programs, folder: Path) -> Program:
    models = ("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(EDGE_MODEL))
    return programs.forked("edge_client", "generate", "a cat", *ENDLESS, *models, folder=folder)


def own_cloud_of(edge: Program) -> int:
    """Wait for the cloud service that an edge client starts; return its process id."""
    (pid,) = wait_until(lambda: children(edge.pid), "the edge's own cloud to be started")
    return pid


def session_count(pid: int) -> float | None:
    assert not is_gone(pid)
    for address in listening_addresses(pid):
        try:
            return Scrape.of(address).value("ecdiff_cloud_sessions")
        except (OSError, ValueError):  # the port of gRPC, not of the metrics
            continue
    return None


def wait_for_a_session(pid: int) -> None:
    wait_until(lambda: session_count(pid) == 1, "the edge's own cloud to be at work", 120)


def test_interrupt_stops_the_edges_own_cloud(programs: Programs, tmp_path: Path) -> None:
    edge = generate_on_own_cloud(programs, tmp_path)
    pid = own_cloud_of(edge)
    wait_for_a_session(pid)
    edge.signal(signal.SIGINT)
    assert edge.wait().returncode == INTERRUPTED
    assert is_gone(pid)


def test_interrupt_while_the_own_cloud_loads_stops_it(programs: Programs, tmp_path: Path) -> None:
    edge = generate_on_own_cloud(programs, tmp_path)
    pid = own_cloud_of(edge)
    edge.signal(signal.SIGINT)
    done = edge.wait()
    assert done.returncode == INTERRUPTED
    assert done.stderr == "error: interrupted\n"
    assert is_gone(pid)


def test_own_cloud_of_a_killed_edge_ends(programs: Programs, tmp_path: Path) -> None:
    edge = generate_on_own_cloud(programs, tmp_path)
    pid = own_cloud_of(edge)
    wait_for_a_session(pid)
    edge.signal(signal.SIGKILL)
    edge.wait()
    wait_until(lambda: is_gone(pid), "the orphaned cloud to end", 120)


def test_interrupt_while_the_own_cloud_ends_keeps_the_picture(programs: Programs, tmp_path: Path) -> None:
    models = ("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(EDGE_MODEL))
    # The edge has most of the work, so that the cloud can be frozen after its part.
    edge = programs.forked("edge_client", "generate", "a cat", "--steps", "100,400", *models, folder=tmp_path)
    pid = own_cloud_of(edge)
    wait_for_a_session(pid)
    wait_until(lambda: session_count(pid) == 0, "the handoff", 120)
    os.kill(pid, signal.SIGSTOP)
    picture = tmp_path / "out.png"
    wait_until(picture.is_file, "the picture", 120)
    edge.signal(signal.SIGINT)  # the frozen service does not answer SIGTERM
    assert edge.wait().returncode == INTERRUPTED
    with Image.open(picture) as image:
        assert image.size == (128, 128)
    wait_until(lambda: is_gone(pid), "the own cloud to be ended by force")
