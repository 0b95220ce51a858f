"""Waiting for something to become true, with a generous end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.01


def wait_until(ready: Callable[[], T], what: str, timeout_seconds: float = WAIT_SECONDS) -> T:
    """Return the first true value of `ready()`; the test fails when it never comes."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := ready()):
        assert time.monotonic() < deadline, f"waited {timeout_seconds:g} s in vain: {what}"
        time.sleep(_POLL_SECONDS)
    return value


async def eventually(ready: Callable[[], T], what: str, timeout_seconds: float = WAIT_SECONDS) -> T:
    """As `wait_until`, without blocking the event loop; `ready` runs on another thread."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := await asyncio.to_thread(ready)):
        assert time.monotonic() < deadline, f"waited {timeout_seconds:g} s in vain: {what}"
        await asyncio.sleep(_POLL_SECONDS)
    return value


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run `work` beside the block; what still runs at its end is cancelled."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
