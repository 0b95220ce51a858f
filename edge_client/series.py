"""The edge's Prometheus series (docs/metrics.md), and what one of them takes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.handoff import LOST_REASONS, HandoffReason
from orchestrator.plan import MODES
from wire.fleet_messages import HANDOFF_STAGES, OUTCOMES, SECONDS_BUCKETS
from wire.messages import Codec

CODEC_BUCKETS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0)
ERROR_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STEP_BUCKETS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 75, 100)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series.

    Attributes:
        kind: How Prometheus reads it.
        text: Its help.
        labels: The values that each label may have.
        buckets: Of a histogram.
        low: The least value.
    """

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    low: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one series takes in: a counter what it goes up by, a histogram each value, a gauge the last.

    Raises:
        ValueError: There is no such series, it has other labels, or it cannot take such a value.
    """

    series: str
    values: tuple[float, ...]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = SERIES.get(self.series)
        if known is None:
            raise ValueError(f"there is no series {self.series[:80]!r}")
        if set(self.labels) != set(known.labels):
            raise ValueError(f"{self.series} has the labels {sorted(known.labels)}, not {sorted(self.labels)[:8]}")
        for label, value in self.labels.items():
            if value not in known.labels[label]:
                raise ValueError(f"{label} of {self.series} is one of {known.labels[label]}, not {value[:80]!r}")
        for number in self.values:
            if not (math.isfinite(number) and number >= known.low):
                raise ValueError(f"{self.series} takes no {number}")


def _seconds(text: str, **labels: tuple[str, ...]) -> Series:
    return Series(kind="histogram", text=text, labels=labels, buckets=SECONDS_BUCKETS)


_CODECS = tuple(codec.label for codec in Codec)
SERIES: Mapping[str, Series] = {
    "ecdiff_network_rtt_seconds": _seconds("Round trip to the cloud, by probe.", probe=("channel", "stream")),
    "ecdiff_latents_transit_seconds": _seconds("Latents from the cloud's send to their arrival."),
    "ecdiff_clock_offset_seconds": Series(kind="gauge", text="Cloud clock minus this clock.", low=-math.inf),
    "ecdiff_clock_offset_uncertainty_seconds": Series(kind="gauge", text="Bound on the error of the clock offset."),
    "ecdiff_handoff_seconds": _seconds("Handoff latency, by stage.", stage=HANDOFF_STAGES),
    "ecdiff_handoff_step": Series(kind="histogram", text="First step of the edge model.", buckets=STEP_BUCKETS),
    "ecdiff_handoffs_total": Series(
        kind="counter", text="Handoffs, by reason.", labels={"reason": tuple(reason.value for reason in HandoffReason)}
    ),
    "ecdiff_cloud_moves_total": Series(
        kind="counter",
        text="Generations that went on at another cloud, by what they left the last one for.",
        labels={"reason": tuple(reason.value for reason in LOST_REASONS)},
    ),
    "ecdiff_nfe_total": Series(
        kind="counter",
        text="Steps, by the source of their prediction.",
        labels={"source": ("cloud", "extrapolated", "edge", "correction")},
    ),
    "ecdiff_extrapolation_error": Series(
        kind="histogram",
        text="Relative error of the extrapolation, measured at real steps.",
        buckets=ERROR_BUCKETS,
    ),
    "ecdiff_latents_bytes_total": Series(
        kind="counter",
        text="Bytes of tensors on the stream.",
        labels={"direction": ("sent", "received"), "codec": _CODECS, "kind": ("raw", "wire")},
    ),
    "ecdiff_codec_seconds": Series(
        kind="histogram",
        text="Time to encode or decode one tensor.",
        labels={"operation": ("encode", "decode"), "codec": _CODECS},
        buckets=CODEC_BUCKETS,
    ),
    "ecdiff_generation_seconds": _seconds("Prompt to pictures, by mode.", mode=MODES),
    "ecdiff_generations_total": Series(
        kind="counter",
        text="Generations, by mode and outcome.",
        labels={"mode": MODES, "outcome": OUTCOMES},
    ),
}
