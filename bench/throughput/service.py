"""The service under load: a process on a core of its own, and what its metrics count."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass

import torch
from prometheus_client.parser import text_string_to_metric_families

_LISTENING = re.compile(r"listening on (\S+) metrics on (\S+)")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counters of a service at one moment: sampling steps evaluated, forward passes, sessions in those passes."""

    evaluations: float
    passes: float
    batched: float


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service."""

    address: str
    metrics_address: str

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
    """Start a service with one thread on the last core that this process may use, which leaves it; end both after.

    Where there is a GPU the service runs there, and shares the cores with its clients: it only launches from them.
    """
    cores = sorted(os.sched_getaffinity(0))
    own = set(cores) if torch.cuda.is_available() else {cores[-1]}
    command = [sys.executable, "-P", "-m", "cloud_service", "serve", "--exit-with-stdin", "--log-level", "error"]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    command += ["--max-batch", str(max_batch), "--max-sessions", str(max_sessions)]
    command += ["--compile"] if compile_steps else []
    os.sched_setaffinity(0, own)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    finally:
        os.sched_setaffinity(0, set(cores) - own or set(cores))
    try:
        assert process.stdout is not None
        match = _LISTENING.search((await process.stdout.readline()).decode())
        if match is None:
            raise SystemExit("error: the service did not start; run cloud-service serve to see why")
        await process.stdout.readline()  # it says SERVING
        yield Service(address=match[1], metrics_address=match[2])
    finally:
        process.terminate()
        await process.wait()
        os.sched_setaffinity(0, set(cores))
