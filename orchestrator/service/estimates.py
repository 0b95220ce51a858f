"""What session reports teach about one replica: robust, bounded, forgotten with time. Pure: the caller tells the time.

An edge may be wrong or lie. A report is one voice among the last few, what it says must lie within a factor of what the
replica says of itself or within fixed bounds, and what is learned may move a prediction by a bounded factor only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from wire.fleet_messages import SessionReport

NUM_KEPT = 32
"""Samples that are remembered of each quantity."""
PRIOR_WEIGHT = 1.5
"""Two fresh reports that agree outweigh what was assumed, one does not."""
LINK_HALF_LIFE_SECONDS = 600.0
STEP_HALF_LIFE_SECONDS = 600.0
# A queue is a matter of who else is there at the moment.
QUEUE_HALF_LIFE_SECONDS = 30.0
CALIBRATION_HALF_LIFE_SECONDS = 3600.0

MAX_STEP_RATIO = 8.0
"""A step that took more, or less, than this factor of what the replica says is not believed."""
MAX_STEP_SECONDS, MAX_QUEUE_SECONDS, MAX_RTT_SECONDS = 100.0, 600.0, 10.0
MIN_BANDWIDTH, MAX_BANDWIDTH = 1e3, 1e12
MAX_SAMPLE_RATIO = 16.0
"""Measured over predicted beyond this factor is an accident, not a bias."""
MAX_CALIBRATION = 4.0
"""What is learned makes a prediction at most so many times as long, or as short."""
_BELOW_ONE_PREDICTION_SECONDS = 1e-6


class DecayingMedian:
    """The median of the newest samples, each weighing half as much for every half-life of its age.

    Args:
        half_life_seconds: Of a sample's weight.
        samples: To begin with: pairs of value and time.
    """

    def __init__(self, half_life_seconds: float, samples: Iterable[tuple[float, float]] = ()) -> None:
        self._half_life_seconds = half_life_seconds
        self._samples: deque[tuple[float, float]] = deque(samples, maxlen=NUM_KEPT)

    @property
    def samples(self) -> list[tuple[float, float]]:
        """Values and their times."""
        return list(self._samples)

    def add(self, value: float, now_seconds: float) -> None:
        """Take in one sample."""
        self._samples.append((value, now_seconds))

    def value(self, now_seconds: float, prior: float | None = None) -> float | None:
        """Return the weighted median.

        Args:
            now_seconds: By the clock of the samples.
            prior: What is assumed without samples; it takes part as a sample that does not age. None: nothing is.
        """
        weighed = [
            (value, 0.5 ** (max(0.0, now_seconds - at_seconds) / self._half_life_seconds))
            for value, at_seconds in self._samples
        ]
        if prior is not None:
            weighed.append((prior, PRIOR_WEIGHT))
        half = sum(weight for _, weight in weighed) / 2
        reached = 0.0
        for value, weight in sorted(weighed):
            reached += weight
            if reached >= half:
                return value
        return None


class ReplicaEstimates:
    """What is known of one replica from the edges that used it.

    Args:
        fingerprint: Of the model that was served when it was learned.
        num_reports: That it stands on.
        **samples: By the names of `QUANTITIES`.
    """

    QUANTITIES: Mapping[str, float] = {
        "step_seconds_per_element": STEP_HALF_LIFE_SECONDS,
        "queue_seconds": QUEUE_HALF_LIFE_SECONDS,
        "rtt_seconds": LINK_HALF_LIFE_SECONDS,
        "bandwidth_bytes_per_second": LINK_HALF_LIFE_SECONDS,
        "log_ratio": CALIBRATION_HALF_LIFE_SECONDS,
    }

    def __init__(self, fingerprint: str = "", num_reports: int = 0, **samples: Iterable[tuple[float, float]]) -> None:
        self.fingerprint = fingerprint
        self.num_reports = num_reports
        self._medians = {
            name: DecayingMedian(half_life, samples.get(name, ())) for name, half_life in self.QUANTITIES.items()
        }

    def learn(self, report: SessionReport, now_seconds: float, *, told_step_per_element: float) -> None:
        """Take in what a report says, as far as it can be believed.

        Args:
            report: Of a generation on this replica.
            now_seconds: The time.
            told_step_per_element: What the replica says of its own step, for each element of the latents; 0: nothing.
        """
        self.num_reports += 1
        step, elements = report.cloud_step_seconds, report.latents_elements
        if step and elements and step <= MAX_STEP_SECONDS:
            per_element = step / elements
            if not told_step_per_element or _within_factor(per_element, told_step_per_element, MAX_STEP_RATIO):
                self._add("step_seconds_per_element", per_element, now_seconds)
        if report.cloud_queue_seconds is not None and report.cloud_queue_seconds <= MAX_QUEUE_SECONDS:
            self._add("queue_seconds", report.cloud_queue_seconds, now_seconds)
        if report.rtt_seconds is not None and report.rtt_seconds <= MAX_RTT_SECONDS:
            self._add("rtt_seconds", report.rtt_seconds, now_seconds)
        bandwidth = report.bandwidth_bytes_per_second
        if bandwidth is not None and MIN_BANDWIDTH <= bandwidth <= MAX_BANDWIDTH:
            self._add("bandwidth_bytes_per_second", bandwidth, now_seconds)
        ratio = prediction_ratio(report)
        if ratio is not None:
            # Against the prediction as it would have been without what was learned before.
            uncalibrated = ratio * report.calibration
            if _within_factor(uncalibrated, 1.0, MAX_SAMPLE_RATIO):
                self._add("log_ratio", math.log(uncalibrated), now_seconds)

    def step_seconds(self, elements: int, now_seconds: float, *, told_step_per_element: float) -> float | None:
        """Return what one evaluation of latents of so many elements takes; None where nobody knows."""
        prior = told_step_per_element or None
        per_element = self._medians["step_seconds_per_element"].value(now_seconds, prior)
        return None if per_element is None else elements * per_element

    def queue_seconds(self, now_seconds: float, *, told_seconds: float) -> float:
        """Return what a step waits for the device: as edges saw it, or as the replica's queue says."""
        value = self._medians["queue_seconds"].value(now_seconds, told_seconds)
        assert value is not None
        return value

    def rtt_seconds(self, now_seconds: float) -> float | None:
        """Return the round trip as edges saw it."""
        return self._medians["rtt_seconds"].value(now_seconds)

    def bandwidth_bytes_per_second(self, now_seconds: float) -> float | None:
        """Return the bandwidth as edges saw it."""
        return self._medians["bandwidth_bytes_per_second"].value(now_seconds)

    def calibration(self, now_seconds: float) -> float:
        """Return the factor by which latencies turned out longer than predicted; 1 before anything was learned."""
        log_ratio = self._medians["log_ratio"].value(now_seconds, 0.0)
        assert log_ratio is not None
        return math.exp(min(max(log_ratio, -math.log(MAX_CALIBRATION)), math.log(MAX_CALIBRATION)))

    def as_json(self) -> dict[str, Any]:
        """Return everything, for the file of estimates."""
        samples = {name: median.samples for name, median in self._medians.items()}
        return {"fingerprint": self.fingerprint, "num_reports": self.num_reports, **samples}

    def _add(self, name: str, value: float, now_seconds: float) -> None:
        self._medians[name].add(value, now_seconds)


def prediction_ratio(report: SessionReport) -> float | None:
    """Return measured over predicted latency; None where there was no prediction, or no picture as it was planned."""
    predicted = report.predicted_seconds
    if predicted is None or predicted < _BELOW_ONE_PREDICTION_SECONDS or report.outcome != "done":
        return None
    return max(report.total_seconds - report.connect_seconds, _BELOW_ONE_PREDICTION_SECONDS) / predicted


def _within_factor(value: float, reference: float, factor: float) -> bool:
    return reference / factor <= value <= reference * factor
