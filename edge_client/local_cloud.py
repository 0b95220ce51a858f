"""A cloud service of the edge's own: a process on a free loopback port, gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Sequence

from diffusion.lora_file import Lora
from wire.errors import NotServing

LISTENING = re.compile(r"cloud-service listening on (\S+) metrics on (\S+)")
LOG_LINES_KEPT = 20
STOP_SECONDS = 5.0
CHUNK_BYTES = 64 * 1024


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def half_of_the_cores() -> int:
    """Return how many threads each of two models gets that compute on this machine at the same time."""
    return max(1, usable_cores() // 2)


class LocalCloud:
    """A running `cloud-service serve`. Make one with `await LocalCloud.start(...)`, end it with `stop()`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.address = ""
        self.metrics_address = ""
        self._log: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @classmethod
    async def start(cls, model: str | None, *, device: str, dtype: str, loras: Sequence[Lora] = ()) -> LocalCloud:
        """Start the service; it may still be loading its model when this returns.

        Args:
            model: Folder or hub id; None for the bundled one.
            device: As `cloud-service serve --device`.
            dtype: As `cloud-service serve --dtype`.
            loras: As `cloud-service serve --lora`.

        Raises:
            NotServing: It ended at once, with its own last words.
        """
        # -P: a models.py or wire.py in the user's folder is not ours.
        command = [sys.executable, "-P", "-m", "cloud_service", "serve", "--listen", "127.0.0.1:0"]
        command += ["--metrics-listen", "127.0.0.1:0", "--device", device, "--dtype", dtype, "--exit-with-stdin"]
        command += [] if model is None else ["--model", model]
        command += [word for lora in loras for word in ("--lora", str(lora))]
        # A session of its own: Ctrl-C reaches the edge, which closes its session before it stops the service.
        environment = {"OMP_NUM_THREADS": str(half_of_the_cores()), **os.environ}
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment, start_new_session=True
        )
        local = cls(process)
        try:
            await local._listening()
        except BaseException:
            await local.stop()
            raise
        return local

    async def _listening(self) -> None:
        """Wait for the service's first line, which names its ports."""
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [asyncio.create_task(_keep(process.stderr, self._log))]
        line = (await process.stdout.readline()).decode(errors="replace")
        match = LISTENING.search(line)
        if match is None:
            raise await self.wait_failed()
        self.address, self.metrics_address = match[1], match[2]
        self._readers.append(asyncio.create_task(_keep(process.stdout, deque(maxlen=1))))

    async def wait_failed(self) -> NotServing:
        """Wait until the process ends by itself; return why."""
        await self._process.wait()
        await asyncio.gather(*self._readers)
        return NotServing(last_words(self._log, f"the cloud service ended with code {self._process.returncode}"))

    async def stop(self) -> None:
        """End the process: politely, then by force; at once by force when this is cancelled."""
        try:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        finally:
            if self._process.returncode is None:
                self._process.kill()  # also ends a process that SIGSTOP holds
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.gather(*self._readers, return_exceptions=True)


async def _keep(stream: asyncio.StreamReader, log: deque[str]) -> None:
    """Read a stream to its end, so that its writer never blocks, and keep the newest lines."""
    rest = ""
    while chunk := await stream.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk.decode(errors="replace"))[-CHUNK_BYTES:].split("\n")
        log.extend(lines)
    log.append(rest)


def last_words(log: deque[str], otherwise: str) -> str:
    """Return the service's own `error:` line, or its last one."""
    for line in reversed(log):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    last = next((line.strip() for line in reversed(log) if line.strip()), "")
    return f"{otherwise}: {last}" if last else otherwise
