"""Who is next: generations run one at a time, in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from wire.errors import Busy


@dataclass(kw_only=True, eq=False)
class Ticket:
    """One generation in the queue.

    Attributes:
        request: What it is.
        on_place: Told how many are ahead of it, the running one included, whenever that changes.
        arrived_at: On `time.perf_counter`'s clock.
        snapshot: Where it stands; None while it waits.
        first: Set when it is its turn.
    """

    request: GenerationRequest
    on_place: Callable[[int], None]
    arrived_at: float
    snapshot: Snapshot | None = None
    first: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """The queue, its first one included.

    Args:
        max_waiting: Most generations that wait.
        on_change: Told how many wait, whenever that changes.
    """

    def __init__(self, *, max_waiting: int, on_change: Callable[[int], None]) -> None:
        self._max_waiting = max_waiting
        self._on_change = on_change
        self._line: list[Ticket] = []

    @property
    def line(self) -> Sequence[Ticket]:
        """Who has the turn, then who waits, in order."""
        return self._line

    @contextlib.asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait in line; the block is the ticket's turn.

        Raises:
            Busy: Too many wait.
        """
        if len(self._line) > self._max_waiting:
            raise Busy(f"the agent's queue is full ({self._max_waiting} wait): try again later, or say --no-agent")
        self._line.append(ticket)
        self._tell()
        try:
            await ticket.first.wait()
            yield
        finally:
            self._line.remove(ticket)
            self._tell()

    def _tell(self) -> None:
        for ahead, ticket in enumerate(self._line):
            ticket.on_place(ahead)
        if self._line:
            self._line[0].first.set()
        self._on_change(max(0, len(self._line) - 1))
