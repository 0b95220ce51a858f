"""What a network is like: latency, jitter, bandwidth, queue."""

from __future__ import annotations

import math
from dataclasses import dataclass

_BYTES_PER_MBIT = 125_000
# A packet; and what still takes few reads at 1 Gbit/s.
_MIN_READ_BYTES, _MAX_READ_BYTES = 1500, 64 * 1024
_READ_SECONDS = 0.001
# Under way in a connection where no bandwidth says how much that can be.
_WIDE_WINDOW_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Link:
    """What lies between two ends; the same in both directions.

    Attributes:
        latency_ms: One way; a round trip is twice that.
        jitter_ms: Drawn evenly from 0 to this and added to the latency of each read. Bytes stay in order, so one late
            read holds up those behind it, as a late packet does in TCP.
        bandwidth_mbit_s: Of each direction, shared by all connections first come, first served; None for no limit.
        queue_ms: How long bytes may wait for the bandwidth; a longer queue holds the senders back, each in turn.
        slice_bytes: Bytes arrive in pieces of 1 to this many, 1 ms apart, so that no message comes whole; None for off.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    bandwidth_mbit_s: float | None = None
    queue_ms: float = 100.0
    slice_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("latency_ms", "jitter_ms", "queue_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a time from 0 on, not {getattr(self, name)}")
        if self.bandwidth_mbit_s is not None and not 0 < self.bandwidth_mbit_s < math.inf:
            raise ValueError(f"bandwidth_mbit_s is above 0, or None for no limit, not {self.bandwidth_mbit_s}")
        if self.slice_bytes is not None and self.slice_bytes < 1:
            raise ValueError(f"slice_bytes is at least 1, or None for off, not {self.slice_bytes}")

    @property
    def latency_seconds(self) -> float:
        """One way."""
        return self.latency_ms / 1000

    @property
    def bytes_per_second(self) -> float | None:
        """The bandwidth of each direction; None for no limit."""
        return None if self.bandwidth_mbit_s is None else self.bandwidth_mbit_s * _BYTES_PER_MBIT

    @property
    def read_bytes(self) -> int:
        """Most bytes that share one arrival: what the bandwidth carries in 1 ms, between a packet and 64 KiB."""
        if self.bytes_per_second is None:
            return _MAX_READ_BYTES
        return max(_MIN_READ_BYTES, min(_MAX_READ_BYTES, int(self.bytes_per_second * _READ_SECONDS)))

    @property
    def window_bytes(self) -> int:
        """Bytes under way in one direction of a connection above which nothing more is read from its sender.

        The bandwidth-delay product and the queue; 4 MiB without a bandwidth.
        """
        if self.bytes_per_second is None:
            return _WIDE_WINDOW_BYTES
        return int(self.bytes_per_second * (self.latency_ms + self.jitter_ms + self.queue_ms) / 1000) + self.read_bytes

    def __str__(self) -> str:
        bandwidth = "no limit" if self.bandwidth_mbit_s is None else f"{self.bandwidth_mbit_s:g} Mbit/s each way"
        return f"{2 * self.latency_ms:g} ms round trip, {bandwidth}"


# The links that latencies are published for, named by their round trips (5, 40 and 150 ms), as `ping` shows them.
# Each queue holds the bytes of one round trip, the usual size of a router's.
LINKS = {
    "loopback": Link(),
    "fibre": Link(latency_ms=2.5, bandwidth_mbit_s=1000, queue_ms=5),
    "dsl": Link(latency_ms=20, bandwidth_mbit_s=20, queue_ms=40),
    "mobile": Link(latency_ms=75, bandwidth_mbit_s=5, queue_ms=150),
}
