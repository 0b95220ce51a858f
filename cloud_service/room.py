"""How large a batch the device has room for, as learned from those that it had none for."""

from __future__ import annotations

from collections.abc import Hashable

CAREFUL_SECONDS = 60.0
"""So long after a batch found no room, those of its kind are half as large at most; then the whole size is tried."""


class Room:
    """Remembers which batches ran out of memory.

    What fits is not known, only what did not, and what took the room (another program, another size of picture) may be
    gone a minute later. So a batch that failed is halved for a minute, and its half, should that fail too. Sizes that
    never fit cost a few failed passes a minute, and a moment's shortage costs the throughput of a minute.

    Args:
        max_batch: Most sessions in one forward pass where nothing is known.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._careful: dict[Hashable, tuple[int, float]] = {}

    def limit(self, key: Hashable, now: float) -> int:
        """Return the most sessions that may share a forward pass.

        Args:
            key: What is equal for those that do (`scheduling.Candidate`).
            now: `time.monotonic()` seconds.
        """
        limit, until = self._careful.get(key, (self._max_batch, 0.0))
        return limit if now < until else self._max_batch

    def too_small(self, key: Hashable, num_sessions: int, now: float) -> None:
        """Note that there was no room for a batch of `num_sessions`."""
        # Keys are the clients' to choose: those of the past are forgotten.
        self._careful = {each: kept for each, kept in self._careful.items() if now < kept[1]}
        self._careful[key] = (max(1, num_sessions // 2), now + CAREFUL_SECONDS)
