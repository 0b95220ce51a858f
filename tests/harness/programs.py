"""The project's programs as real processes: started, watched, signalled, ended."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.waiting import WAIT_SECONDS

TESTS = Path(__file__).resolve().parents[1]
# One thread a process: there are more processes than cores, and sums come out the same everywhere.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a program left behind."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A running process; its output goes to files."""

    def __init__(self, pid: int, collect: Callable[[], int], stdout: Path, stderr: Path) -> None:
        self.pid = pid
        self._collect = collect
        self._stdout, self._stderr = stdout, stderr
        self._descriptor = os.pidfd_open(pid)
        self._returncode: int | None = None

    @property
    def stdout(self) -> str:
        """What it has said so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._stderr.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether the process is over."""
        return self._returncode is not None or bool(select.select([self._descriptor], [], [], 0)[0])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that is over takes none."""
        if not self.ended:
            signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, timeout_seconds: float = WAIT_SECONDS) -> Finished:
        """Wait for its end."""
        if self._returncode is None:
            over, _, _ = select.select([self._descriptor], [], [], timeout_seconds)
            assert over, f"process {self.pid} did not end within {timeout_seconds:g} s: {self.stdout}{self.stderr}"
            self._returncode = self._collect()
            os.close(self._descriptor)
        return Finished(returncode=self._returncode, stdout=self.stdout, stderr=self.stderr)

    def kill(self) -> None:
        """End it, whatever state it is in (SIGSTOP included)."""
        self.signal(signal.SIGKILL)
        self.wait()


class Programs:
    """Starts programs; whatever still runs when the block is left is killed.

    Args:
        folder: For the outputs of the processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._running: list[Program] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket

    def __enter__(self) -> Programs:
        # Starts its imports now, so that they are done by the time the first fork is asked for.
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "harness.program_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | ENVIRONMENT,
            )
        self._ready = False
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._running:
            program.kill()
        self._connection.close()
        assert self._server is not None
        self._server.wait()

    def cold(self, module: str, *arguments: str, folder: Path | None = None) -> Program:
        """Start `python -m MODULE ARGUMENTS` in a fresh interpreter, as a user would, but tied to this process."""
        stdout, stderr = self._outputs(module)
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness.tied", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        return self._remember(Program(process.pid, process.wait, stdout, stderr))

    def forked(
        self,
        module: str,
        *arguments: str,
        gate: Path | None = None,
        folder: Path | None = None,
        file_limit_bytes: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """Start the same from the process that has torch loaded: a few tenths of a second instead of several."""
        request = {
            "module": module,
            "arguments": arguments,
            "gate": str(gate) if gate else "",
            "folder": str(folder or Path.cwd()),
            "file_limit_bytes": file_limit_bytes,
            "environment": dict(environment or {}),
        }
        stdout, stderr = self._outputs(module)
        with open(os.devnull, "rb") as nothing, stdout.open("wb") as out, stderr.open("wb") as err:
            pid = self._ask(request, [nothing.fileno(), out.fileno(), err.fileno()])
        return self._remember(Program(pid, lambda: self._ask({"collect": pid}), stdout, stderr))

    def _ask(self, request: object, descriptors: list[int] | None = None) -> int:
        if not self._ready:
            assert self._connection.recv(16) == b"ready"
            self._ready = True
        socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors or [])
        return int(json.loads(self._connection.recv(64)))

    def _outputs(self, module: str) -> tuple[Path, Path]:
        stem = f"{next(self._numbers):03}-{module}"
        return self._folder / f"{stem}.out", self._folder / f"{stem}.err"

    def _remember(self, program: Program) -> Program:
        self._running.append(program)
        return program
