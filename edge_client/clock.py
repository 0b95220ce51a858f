"""The time that one generation has, and what the edge needs of it."""

from __future__ import annotations

import math
import time

from edge_client.edge_model import EdgeModel
from wire.fleet_messages import LatencyEstimate
from wire.messages import Plan


class Clock:
    """Counts down to the deadline, if there is one.

    Args:
        plan: What the cloud is told.
        edge: Knows what a step and a decoding take on it.
        deadline_ms: From `start` to the picture; None for none.
        estimate: What the plan is predicted to take; None where nothing was predicted.
    """

    def __init__(
        self, plan: Plan, edge: EdgeModel, *, deadline_ms: float | None, estimate: LatencyEstimate | None
    ) -> None:
        self._num_steps = plan.num_inference_steps
        self._edge = edge
        self._seconds = math.inf if deadline_ms is None else deadline_ms / 1000
        self._predicted_seconds = 0.0 if estimate is None else estimate.total_seconds
        self._predicted_handoff = 0 if estimate is None else estimate.handoff_step
        self._started = time.perf_counter()

    def start(self) -> None:
        """Begin to count."""
        self._started = time.perf_counter()

    def seconds_left(self) -> float:
        """Return the time until the deadline, negative after it; infinite without one."""
        return self._seconds - (time.perf_counter() - self._started)

    def seconds_to_spare(self, next_step: int) -> float:
        """Return the time left beyond what the edge needs from `next_step` on."""
        needed = (self._num_steps - next_step) * self._edge.step_seconds.seconds + self._edge.decode_seconds.seconds
        return self.seconds_left() - needed

    def seconds_to_takeover(self, next_step: int) -> float:
        """Return the time until the edge must take over before `next_step` from a cloud that leads.

        Where the edge alone would be in time that is the last moment at which it still is. An edge that is slower than
        the plan never would: taking over adds the steps that the cloud was to make or to extrapolate. So the cloud gets
        the time that the plan was predicted to take, and as much again as taking over would add.
        """
        added = max(0, self._predicted_handoff - next_step) * self._edge.step_seconds.seconds
        beyond_deadline = max(0.0, self._predicted_seconds + 2 * added - self._seconds)
        return self.seconds_to_spare(next_step) + beyond_deadline
