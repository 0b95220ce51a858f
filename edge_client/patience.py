"""How long a cloud is waited for, and what counts as progress."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from wire.errors import NotServing
from wire.messages import Correction, Finished, HandedOff, Heartbeat, Opened, ServerMessage, Step

# A place in the cloud's queue is waited for this many times as long as a step.
QUEUE_PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When a cloud is lost.

    Attributes:
        silence_seconds: Nothing, not even a heartbeat, came for this long.
        step_seconds: It says that this session is on the device, but no step came of it for this long; ten times as
            long where it says that others are ahead.

    Raises:
        ValueError: Unless both are positive and finite.
    """

    silence_seconds: float = 3.0
    step_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("silence_seconds", "step_seconds"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")

    @property
    def bearable_seconds(self) -> float:
        """Latents of this age are not old on any link: 0.25 s by default, the ends' own share of the time included."""
        return self.silence_seconds / 12


class Progress:
    """Watches that a device does not hang behind a service that lives, which still sends heartbeats.

    Args:
        step_seconds: As in `Patience`.
    """

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._made_at = self._in_line_at = math.inf

    def expect(self) -> None:
        """From now on the cloud owes a step or a correction; a handoff ends that, a parked session owes nothing."""
        self._made_at = self._in_line_at = time.monotonic()

    def watch(self, message: ServerMessage | None) -> None:
        """Take in a message, or None: a piece of one.

        Raises:
            NotServing: No step came for too long.
        """
        now = time.monotonic()
        if isinstance(message, HandedOff | Finished | Correction):
            self._made_at = self._in_line_at = math.inf
        elif isinstance(message, Opened | Step):
            self._made_at = self._in_line_at = now
        elif now - self._made_at > QUEUE_PATIENCE * self._step_seconds:
            raise NotServing(
                f"the cloud has had others before this session for {QUEUE_PATIENCE * self._step_seconds:g} s"
            )
        elif isinstance(message, Heartbeat) and message.queue_position > 0:
            self._in_line_at = now
        elif now - self._in_line_at > self._step_seconds:
            raise NotServing(f"the cloud has made no step for {self._step_seconds:g} s")
