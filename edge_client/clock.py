"""The time that one generation has, and what the edge needs of it."""

from __future__ import annotations

import math
import time

from edge_client.edge_model import EdgeModel
from wire.messages import Plan


class Clock:
    """Counts down to the deadline, if there is one.

    Args:
        plan: What the cloud is told.
        edge: Knows what a step and a decoding take on it.
        deadline_ms: From `start` to the picture; None for none.
    """

    def __init__(self, plan: Plan, edge: EdgeModel, *, deadline_ms: float | None) -> None:
        self._num_steps = plan.num_inference_steps
        self._edge = edge
        self._seconds = math.inf if deadline_ms is None else deadline_ms / 1000
        self._started = time.perf_counter()

    def start(self) -> None:
        """Begin to count."""
        self._started = time.perf_counter()

    def seconds_left(self) -> float:
        """Return the time until the deadline, negative after it; infinite without one."""
        return self._seconds - (time.perf_counter() - self._started)

    def seconds_to_takeover(self, next_step: int) -> float:
        """Return the time until the edge must take over before `next_step` to be done at the deadline."""
        needed = (self._num_steps - next_step) * self._edge.step_seconds.seconds + self._edge.decode_seconds.seconds
        return self.seconds_left() - needed
