"""The emulated network as a command and as a child process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.network import network_process

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 30.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        yield listener


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.network", *arguments]


def test_it_carries_bytes_and_causes_faults_when_told(listener: socket.socket) -> None:
    with network_process(address_of(listener), "dsl") as network, connect(network.address) as near:
        far, _ = listener.accept()
        with far:
            far.settimeout(PATIENCE_SECONDS)
            begin = time.monotonic()
            near.sendall(b"there")
            assert far.recv(5) == b"there"
            far.sendall(b"back")
            assert near.recv(4) == b"back"
            assert time.monotonic() - begin >= 0.04
            network.blackhole()
            near.sendall(b"held up")
            far.settimeout(0.3)
            with pytest.raises(TimeoutError):
                far.recv(7)
            far.settimeout(PATIENCE_SECONDS)
            network.restore()
            assert far.recv(7) == b"held up"
            network.reset()
            for end in (near, far):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)


def test_it_ends_with_the_block(listener: socket.socket) -> None:
    with network_process(address_of(listener), "loopback") as network:
        connect(network.address).close()
    with pytest.raises(ConnectionRefusedError):
        connect(network.address)


def test_its_failure_to_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="status 2"), network_process("nowhere", "dsl"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_without_complaint(number: signal.Signals) -> None:
    with subprocess.Popen(
        command("--to", "127.0.0.1:1", "--link", "mobile"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("listening on 127.0.0.1:")
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--link", "dsl"), 2, "--to"),
        (("--to", "127.0.0.1", "--link", "dsl"), 2, "an address is HOST:PORT"),
        (("--to", "127.0.0.1:1", "--link", "carrier-pigeon"), 2, "'fibre', 'dsl'"),
        (("--to", "127.0.0.1:1", "--link", "dsl", "--listen", "192.0.2.1:1"), 1, "cannot listen on 192.0.2.1:1"),
    ],
)
def test_mistakes_are_told_in_plain_words(arguments: tuple[str, ...], status: int, says: str) -> None:
    done = subprocess.run(
        command(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_fault_is_named() -> None:
    done = subprocess.run(
        command("--to", "127.0.0.1:1", "--link", "dsl"),
        input="earthquake\n",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0
    assert "no such fault: 'earthquake'; there are blackhole, restore, reset" in done.stdout
