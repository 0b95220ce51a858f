"""What one client is still to be told of its generation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from edge_client.agent.convert import encode_place, encode_snapshot
from edge_client.recorder import Snapshot
from protos import edge_agent_v1_pb2 as pb

# As often as a terminal is redrawn; a step may take less than a message.
MIN_INTERVAL_SECONDS = 0.05


class Updates:
    """The newest place or snapshot, and every snapshot with a note: a client that reads slowly misses only old ones."""

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
            self._waiting.pop()
        self._waiting.append(update)
        self._changed.set()

    def close(self) -> None:
        """There is no more to tell."""
        self._closed.set()
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[pb.GenerateUpdate]:
        """Yield what there is to tell until it is closed."""
        while True:
            await self._changed.wait()
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed.is_set():
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._closed.wait(), MIN_INTERVAL_SECONDS)
            except TimeoutError:
                continue
