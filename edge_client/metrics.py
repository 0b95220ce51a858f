"""The edge's Prometheus series (docs/metrics.md), and the textfile of a one-shot run."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    write_to_textfile,
)

from edge_client.recorder import Recorder
from orchestrator.handoff import HandoffReason
from orchestrator.link import LinkEstimate
from orchestrator.plan import MODES

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
CODEC_BUCKETS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0)
ERROR_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STEP_BUCKETS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 75, 100)


class EdgeMetrics:
    """Counts what this edge process did, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()

        def seconds(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, text, labels, buckets=SECONDS_BUCKETS, registry=registry)

        self._rtt = seconds("ecdiff_network_rtt_seconds", "Round trip to the cloud, by probe.", ("probe",))
        self._transit = seconds("ecdiff_latents_transit_seconds", "Latents from the cloud's send to their arrival.")
        self._offset = Gauge("ecdiff_clock_offset_seconds", "Cloud clock minus this clock.", registry=registry)
        self._uncertainty = Gauge(
            "ecdiff_clock_offset_uncertainty_seconds", "Bound on the error of the clock offset.", registry=registry
        )
        self._handoff = seconds("ecdiff_handoff_seconds", "Handoff latency, by stage.", ("stage",))
        self._handoff_step = Histogram(
            "ecdiff_handoff_step", "First step of the edge model.", buckets=STEP_BUCKETS, registry=registry
        )
        self._handoffs = Counter("ecdiff_handoffs_total", "Handoffs, by reason.", ("reason",), registry=registry)
        self._nfe = Counter(
            "ecdiff_nfe_total", "Steps, by the source of their prediction.", ("source",), registry=registry
        )
        self._error = Histogram(
            "ecdiff_extrapolation_error",
            "Relative error of the extrapolation, measured at real steps.",
            buckets=ERROR_BUCKETS,
            registry=registry,
        )
        self._bytes = Counter(
            "ecdiff_latents_bytes_total",
            "Bytes of tensors on the stream.",
            ("direction", "codec", "kind"),
            registry=registry,
        )
        self._codec = Histogram(
            "ecdiff_codec_seconds",
            "Time to encode or decode one tensor.",
            ("operation", "codec"),
            buckets=CODEC_BUCKETS,
            registry=registry,
        )
        self._generation = seconds("ecdiff_generation_seconds", "Prompt to pictures, by mode.", ("mode",))
        self._generations = Counter(
            "ecdiff_generations_total", "Generations, by mode and outcome.", ("mode", "outcome"), registry=registry
        )
        Info("ecdiff_build", "What runs here.", registry=registry).info(
            {"version": version("ecdiff"), "component": "edge"}
        )
        for reason in HandoffReason:
            self._handoffs.labels(reason.value)
        for source in ("cloud", "extrapolated", "edge", "correction"):
            self._nfe.labels(source)
        for mode in MODES:
            self._generations.labels(mode, "done")

    def finished(self, recorder: Recorder) -> None:
        """Take in a generation that gave its pictures."""
        mode = recorder.request.mode
        self._generations.labels(mode, "fallback" if recorder.fallbacks else "done").inc()
        self._generation.labels(mode).observe(recorder.seconds["total"])
        nfe = recorder.nfe
        for source, count in (
            ("cloud", nfe["cloud"]),
            ("extrapolated", nfe["extrapolated"]),
            ("edge", nfe["edge"]),
            ("correction", nfe["corrections"]),
        ):
            self._nfe.labels(source).inc(count)
        for error in recorder.extrapolation_errors:
            self._error.observe(error)
        if recorder.handoff_reason is not None and recorder.handoff_step is not None:
            self._handoffs.labels(recorder.handoff_reason.value).inc()
            self._handoff_step.observe(recorder.handoff_step)
            for stage, value in recorder.handoff_stages.items():
                self._handoff.labels(stage).observe(value)
        self._network(recorder)

    def _network(self, recorder: Recorder) -> None:
        for probe, rtts in (("channel", recorder.rtt_seconds), ("stream", recorder.stream_link.take_new_rtts())):
            for rtt_seconds in rtts:
                self._rtt.labels(probe).observe(rtt_seconds)
        for value in recorder.transit_seconds:
            self._transit.observe(value)
        self._clock(recorder.link)
        for event in recorder.codec_events:
            direction = "sent" if event.operation == "encode" else "received"
            self._bytes.labels(direction, event.codec.label, "raw").inc(event.raw_bytes)
            self._bytes.labels(direction, event.codec.label, "wire").inc(event.wire_bytes)
            self._codec.labels(event.operation, event.codec.label).observe(event.seconds)

    def _clock(self, link: LinkEstimate) -> None:
        if math.isfinite(link.clock_offset_uncertainty_seconds):
            self._offset.set(link.clock_offset_seconds)
            self._uncertainty.set(link.clock_offset_uncertainty_seconds)

    def failed(self, mode: str, *, interrupted: bool) -> None:
        """Take in a generation that gave no picture."""
        self._generations.labels(mode, "interrupted" if interrupted else "failed").inc()

    def write(self, path: Path) -> None:
        """Write every series for node_exporter's textfile collector, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        write_to_textfile(str(path), self.registry)
