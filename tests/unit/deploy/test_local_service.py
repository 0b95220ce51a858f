"""`make setup`, `make up-local`, `make down-local`, `make clean` and `make up` without an Engine: what is shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import is_gone

ROOT = Path(__file__).parents[3]
MAKE = shutil.which("make")
# What local.sh waits for and signals; the real service has tests of its own.
SERVICE = "import time\nprint('cloud-service serving cloud', flush=True)\ntime.sleep(60)\n"
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Makefile and local.sh beside an environment that holds one program."""
    (tmp_path / "deploy").mkdir()
    for name in ("Makefile", "deploy/local.sh", "deploy/compose.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    program(tmp_path / ".venv/bin/cloud-service", f"#!{sys.executable}\n{SERVICE}")
    yield tmp_path
    if (tmp_path / "out/local/pid").exists():
        os.kill(pid_of(tmp_path), signal.SIGKILL)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def pid_of(checkout: Path) -> int:
    return int((checkout / "out/local/pid").read_text())


def local(checkout: Path, verb: str) -> str:
    return subprocess.run([checkout / "deploy/local.sh", verb], capture_output=True, text=True, check=True).stdout


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # What a make that runs these tests told its children is none of this one's business.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    command = [str(MAKE), "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=inherited | environment, capture_output=True, text=True, check=False
    )


def test_up_starts_one_service_and_down_stops_it(checkout: Path) -> None:
    assert "cloud-service serving cloud" in local(checkout, "up")
    pid = pid_of(checkout)
    assert "already running" in local(checkout, "up")
    assert pid_of(checkout) == pid
    assert local(checkout, "down") == "stopped\n"
    assert is_gone(pid)


def test_down_leaves_a_stranger_with_the_old_number_alone(checkout: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (checkout / "out/local").mkdir(parents=True)
        (checkout / "out/local/pid").write_text(f"{stranger.pid}\n")
        assert local(checkout, "down") == "not running\n"
        assert stranger.poll() is None
        stranger.kill()


def test_clean_stops_the_service_first(checkout: Path) -> None:
    local(checkout, "up")
    pid = pid_of(checkout)
    assert make(checkout, "clean").returncode == 0
    assert not (checkout / "out").exists()
    assert is_gone(pid)


def test_up_without_an_engine_says_what_there_is_instead(checkout: Path) -> None:
    program(checkout / "tools/docker", "#!/bin/sh\nexit 1\n")
    done = make(checkout, "up", PATH=f"{checkout / 'tools'}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 2
    (complaint,) = done.stdout.splitlines()
    assert complaint.startswith("error: no Docker Engine answers")
    assert "deploy/local.sh up (make up-local)" in complaint
    assert not (checkout / "out").exists()


def test_setup_takes_the_first_python_that_runs_and_is_new_enough(checkout: Path) -> None:
    tools = checkout / "tools"
    program(tools / "python3.11", "#!/bin/sh\nexit 127\n")
    program(tools / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    chosen = make(checkout, "--eval", "chosen: ; @echo $(PYTHON);", "chosen", PATH=str(tools))
    assert chosen.stdout == "python3\n"


def test_setup_without_a_python_says_what_is_missing(checkout: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (checkout / name).touch()
    done = make(checkout, "setup", PATH=str(checkout / "nothing"))
    assert done.returncode == 2
    assert "error: ecdiff needs Python 3.11 or newer" in done.stdout
