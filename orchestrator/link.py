"""What is known of the network between edge and cloud: round trip, clock offset, bandwidth."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProbeSample:
    """One four-stamp probe: the client's t0 and t3, the server's t1 and t2, Unix seconds of each side.

    The formulas are NTP's (RFC 5905, section 8).
    """

    t0: float
    t1: float
    t2: float
    t3: float

    @property
    def rtt_seconds(self) -> float:
        """Time on the path, without the server's; never negative (clocks tick in steps)."""
        return max(0.0, (self.t3 - self.t0) - (self.t2 - self.t1))

    @property
    def clock_offset_seconds(self) -> float:
        """Server clock minus client clock, if both directions take the same time."""
        return ((self.t1 - self.t0) + (self.t2 - self.t3)) / 2


class LinkEstimate:
    """Collects probes and transfers of one link.

    Args:
        num_offset_samples: The offset comes from the fastest of this many newest probes.
        num_rtt_samples: Round trips kept for the quantiles.
    """

    def __init__(self, *, num_offset_samples: int = 8, num_rtt_samples: int = 256) -> None:
        self._recent: deque[ProbeSample] = deque(maxlen=num_offset_samples)
        self._rtts: deque[float] = deque(maxlen=num_rtt_samples)
        self._new_rtts: list[float] = []
        self._bandwidth: float | None = None

    def add_probe(self, sample: ProbeSample) -> None:
        """Take in one probe."""
        self._recent.append(sample)
        self._rtts.append(sample.rtt_seconds)
        self._new_rtts.append(sample.rtt_seconds)

    def take_new_rtts(self) -> list[float]:
        """Return the round trips since the last call, for a histogram that wants each of them once."""
        new, self._new_rtts = self._new_rtts, []
        return new

    @property
    def num_probes(self) -> int:
        """Probes taken in and still remembered."""
        return len(self._rtts)

    @property
    def clock_offset_seconds(self) -> float:
        """Server clock minus client clock, from the fastest recent probe; 0 before the first."""
        return self._fastest().clock_offset_seconds if self._recent else 0.0

    @property
    def clock_offset_uncertainty_seconds(self) -> float:
        """Bound on the offset's error: half the fastest round trip; infinite before the first probe."""
        return self._fastest().rtt_seconds / 2 if self._recent else math.inf

    def rtt_quantile_seconds(self, quantile: float) -> float:
        """Return the round trip at `quantile` in 0..1; 0 before the first probe."""
        return nearest_rank(self._rtts, quantile)

    def one_way_seconds(self, sent_at: float, received_at: float) -> float:
        """Time from the server's `sent_at` to the client's `received_at`, floored at 0."""
        return max(0.0, received_at - (sent_at - self.clock_offset_seconds))

    def add_transfer(self, num_bytes: int, seconds: float) -> None:
        """Take in a bulk transfer of `num_bytes` that took `seconds` beyond the round trip."""
        measured = num_bytes / max(seconds, 1e-6)
        # One slow transfer may be a hiccup: move half way.
        self._bandwidth = measured if self._bandwidth is None else (self._bandwidth + measured) / 2

    @property
    def bandwidth_bytes_per_second(self) -> float | None:
        """Smoothed bandwidth towards the client; None before the first transfer."""
        return self._bandwidth

    def _fastest(self) -> ProbeSample:
        return min(self._recent, key=lambda sample: sample.rtt_seconds)


def nearest_rank(values: Collection[float], quantile: float) -> float:
    """Return the value at `quantile` in 0..1 (nearest rank); 0 if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)] if ordered else 0.0
