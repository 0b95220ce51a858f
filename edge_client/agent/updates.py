"""What one client is still to be told of its generation."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from edge_client.agent.convert import encode_place, encode_snapshot
from edge_client.recorder import Snapshot
from protos import edge_agent_v1_pb2 as pb

# As often as a terminal is redrawn; a step may take less than a message.
MIN_INTERVAL_SECONDS = 0.05
# Whoever hears nothing for much longer knows that the agent hangs.
HEARTBEAT_SECONDS = 1.0


class Updates:
    """The newest place or snapshot, again and again, and every snapshot with a note once.

    A client that reads slowly misses old ones only.
    """

    def __init__(self) -> None:
        self._waiting: deque[pb.GenerateUpdate] = deque()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()

    def place(self, ahead: int) -> None:
        """Tell how many generations are ahead."""
        self._put(encode_place(ahead))

    def progress(self, snapshot: Snapshot) -> None:
        """Tell where the generation stands."""
        self._put(encode_snapshot(snapshot))

    def _put(self, update: pb.GenerateUpdate) -> None:
        if self._waiting and not self._waiting[-1].progress.note:
            replaced = self._waiting.pop()
            if update.HasField("progress") and not update.progress.preview:
                update.progress.preview = replaced.progress.preview
        self._waiting.append(update)
        self._changed.set()

    def close(self) -> None:
        """There is no more to tell."""
        self._closed.set()
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[pb.GenerateUpdate]:
        """Yield what there is to tell until it is closed."""
        newest = encode_place(0)
        while True:
            await _wait(self._changed, HEARTBEAT_SECONDS)
            self._changed.clear()
            if not self._waiting and not self._closed.is_set():
                yield _without_note(newest)
            while self._waiting:
                newest = self._waiting.popleft()
                yield newest
            if self._closed.is_set():
                return
            await _wait(self._closed, MIN_INTERVAL_SECONDS)


def _without_note(update: pb.GenerateUpdate) -> pb.GenerateUpdate:
    again = pb.GenerateUpdate()
    again.CopyFrom(update)
    if again.HasField("progress"):
        again.progress.note, again.progress.preview = "", b""
    return again


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
