"""The service under load: a process of its own, and what its metrics count."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_LISTENING = re.compile(r"listening on (\S+) metrics on (\S+)")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counters of a service at one moment: sampling steps evaluated, forward passes, sessions in those passes."""

    evaluations: float
    passes: float
    batched: float


class RunningClock:
    """Time during which the service ran, seconds."""

    def __init__(self) -> None:
        self.paused_seconds = 0.0

    def __call__(self) -> float:
        """Return the time now."""
        return time.perf_counter() - self.paused_seconds


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service."""

    address: str
    metrics_address: str
    pid: int

    @contextlib.contextmanager
    def paused(self, clock: RunningClock) -> Iterator[None]:
        """Stop the process for a while, and the clock with it; its sessions notice nothing but a late message."""
        os.kill(self.pid, signal.SIGSTOP)
        began = time.perf_counter()
        try:
            yield
        finally:
            clock.paused_seconds += time.perf_counter() - began
            os.kill(self.pid, signal.SIGCONT)

    def counts(self) -> Counts:
        """Scrape it."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            values = {
                (sample.name, sample.labels.get("source")): sample.value
                for family in families
                for sample in family.samples
            }
        return Counts(
            evaluations=values["ecdiff_nfe_total", "cloud"],
            passes=values["ecdiff_cloud_batch_size_count", None],
            batched=values["ecdiff_cloud_batch_size_sum", None],
        )


@contextlib.asynccontextmanager
async def running_service(*, max_batch: int, max_sessions: int, compile_steps: bool) -> AsyncIterator[Service]:
    """Start a service whose model has one thread, as the raw forward has; end it after."""
    command = [sys.executable, "-P", "-m", "cloud_service", "serve", "--exit-with-stdin", "--log-level", "error"]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    command += ["--max-batch", str(max_batch), "--max-sessions", str(max_sessions)]
    command += ["--compile"] if compile_steps else []
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        assert process.stdout is not None
        match = _LISTENING.search((await process.stdout.readline()).decode())
        if match is None:
            raise SystemExit("error: the service did not start; run cloud-service serve to see why")
        await process.stdout.readline()  # it says SERVING
        yield Service(address=match[1], metrics_address=match[2], pid=process.pid)
    finally:
        process.terminate()
        await process.wait()
