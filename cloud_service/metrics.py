"""The cloud's Prometheus series. Names and labels are a contract: dashboards and alerts are written against them."""

from __future__ import annotations

import importlib.metadata
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from wire.errors import (
    Busy,
    CorruptTensor,
    DeadlineExceeded,
    EcdiffError,
    InvalidRequest,
    LimitExceeded,
    NotServing,
    ProtocolError,
    Unauthenticated,
    UnknownModel,
    VersionMismatch,
)
from wire.messages import Codec, Scaling
from wire.tensors import CodecEvent

# 1 ms .. 100 s, three or so a decade: a step, a queue, a whole generation.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_CODEC_SECONDS = (1e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1, 10, 100)
_RELATIVE_ERRORS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)

REJECTION_REASONS: dict[type[EcdiffError], str] = {
    Busy: "busy",
    CorruptTensor: "corrupt_tensor",
    DeadlineExceeded: "timeout",
    InvalidRequest: "invalid_request",
    LimitExceeded: "limit",
    NotServing: "not_serving",
    ProtocolError: "protocol",
    Unauthenticated: "token",
    UnknownModel: "unknown_model",
    VersionMismatch: "version",
}
CorrectionOutcome = Literal["answered", "failed", "dropped"]
Direction = Literal["sent", "received"]


class Metrics:
    """The series of one service, in a registry of its own; thread-safe, as prometheus_client is."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._nfe = Counter(
            "ecdiff_nfe", "Sampling steps by the source of their prediction.", ["source"], registry=registry
        )
        self._step_seconds = Histogram(
            "ecdiff_cloud_step_seconds",
            "Duration of one real evaluation with its scheduler step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "ecdiff_cloud_queue_seconds",
            "Time a step that needs an evaluation waited for the device.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "ecdiff_cloud_batch_size", "Sessions in one forward pass.", buckets=_BATCH_SIZES, registry=registry
        )
        self.sessions = Gauge("ecdiff_cloud_sessions", "Open sessions, running and parked.", registry=registry)
        self._extrapolation_error = Histogram(
            "ecdiff_extrapolation_error",
            "Relative distance of the prediction that extrapolation would have made from the real one.",
            buckets=_RELATIVE_ERRORS,
            registry=registry,
        )
        self._latents_bytes = Counter(
            "ecdiff_latents_bytes",
            "Bytes of latents, noise and predictions, before (raw) and after (wire) encoding.",
            ["direction", "codec", "kind"],
            registry=registry,
        )
        self._codec_seconds = Histogram(
            "ecdiff_codec_seconds",
            "Duration of encoding or decoding one tensor.",
            ["operation", "codec"],
            buckets=_CODEC_SECONDS,
            registry=registry,
        )
        self._rejected = Counter(
            "ecdiff_sessions_rejected", "Calls and sessions refused before they began.", ["reason"], registry=registry
        )
        self._corrections = Counter(
            "ecdiff_corrections", "Corrections asked for, by what became of them.", ["outcome"], registry=registry
        )
        build = Info("ecdiff_build", "What runs here.", registry=registry)
        build.info({"version": importlib.metadata.version("ecdiff"), "component": "cloud"})
        self._create_known_labels()

    def _create_known_labels(self) -> None:
        # A series that starts at 0 lets rate() see its first increment.
        for source in ("cloud", "extrapolated", "correction"):
            self._nfe.labels(source)
        for outcome in ("answered", "failed", "dropped"):
            self._corrections.labels(outcome)
        for reason in REJECTION_REASONS.values():
            self._rejected.labels(reason)
        for codec in Codec:
            for operation in ("encode", "decode"):
                self._codec_seconds.labels(operation, codec.label)
            for direction in ("sent", "received"):
                for kind in ("raw", "wire"):
                    self._latents_bytes.labels(direction, codec.label, kind)

    def evaluated(self, *, batch_size: int) -> None:
        """Count one forward pass of `batch_size` sessions."""
        self._batch_size.observe(batch_size)

    def cloud_step(self, *, compute_seconds: float, queue_seconds: float, extrapolation_error: float | None) -> None:
        """Count one step with a real evaluation."""
        self._nfe.labels("cloud").inc()
        self._step_seconds.observe(compute_seconds)
        self._queue_seconds.observe(queue_seconds)
        if extrapolation_error is not None:
            self._extrapolation_error.observe(extrapolation_error)

    def extrapolated_step(self) -> None:
        """Count one step whose prediction was extrapolated."""
        self._nfe.labels("extrapolated").inc()

    def correction(self, outcome: CorrectionOutcome) -> None:
        """Count one correction; an answered one was evaluated."""
        self._corrections.labels(outcome).inc()
        if outcome == "answered":
            self._nfe.labels("correction").inc()

    def rejected(self, error: EcdiffError) -> None:
        """Count one refusal by the class of its error, of `REJECTION_REASONS` or derived from one of them."""
        reason = next(REJECTION_REASONS[cls] for cls in type(error).__mro__ if cls in REJECTION_REASONS)
        self._rejected.labels(reason).inc()

    def codec_event(self, event: CodecEvent) -> None:
        """Count one tensor that was encoded (sent) or decoded (received)."""
        codec = event.codec.label
        self._codec_seconds.labels(event.operation, codec).observe(event.seconds)
        if event.scaling is not Scaling.EMBEDDING:
            direction: Direction = "sent" if event.operation == "encode" else "received"
            self._latents_bytes.labels(direction, codec, "raw").inc(event.raw_bytes)
            self._latents_bytes.labels(direction, codec, "wire").inc(event.wire_bytes)
