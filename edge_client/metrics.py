"""The edge's Prometheus series (docs/metrics.md), and the textfile of a one-shot run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
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

from edge_client.observations import Harvest
from edge_client.recorder import Recorder
from edge_client.series import SERIES, Observation, Series


class EdgeMetrics:
    """Counts what this edge process did, in a registry of its own.

    Attributes:
        registry: What Prometheus scrapes.
        latest: What the newest generation had to say.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.latest: list[Observation] = []
        self._harvest: Harvest | None = None
        self._series = {name: _make(name, series, self.registry) for name, series in SERIES.items()}
        Info("ecdiff_build", "What runs here.", registry=self.registry).info(
            {"version": version("ecdiff"), "component": "edge"}
        )

    def observe(self, observations: Iterable[Observation]) -> None:
        """Take them in."""
        for each in observations:
            series = self._series[each.series]
            if each.labels:
                series = series.labels(**each.labels)
            for value in each.values:
                match series:
                    case Counter():
                        series.inc(value)
                    case Gauge():
                        series.set(value)
                    case Histogram():
                        series.observe(value)

    def begin(self, recorder: Recorder) -> None:
        """A generation begins."""
        self._harvest = Harvest(recorder)
        self.latest = []

    def catch_up(self) -> None:
        """Take in what the running generation has to say by now, if one runs: it may run for minutes."""
        if self._harvest is not None:
            self._take(self._harvest.so_far())

    def finished(self, *, with_fallbacks: bool) -> None:
        """The generation gave its pictures."""
        self._end("fallback" if with_fallbacks else "done")

    def failed(self, *, interrupted: bool) -> None:
        """It gave none."""
        self._end("interrupted" if interrupted else "failed")

    def _end(self, outcome: str) -> None:
        assert self._harvest is not None
        self._take(self._harvest.ending(outcome))
        self._harvest = None

    def _take(self, observations: list[Observation]) -> None:
        self.observe(observations)
        self.latest += observations

    def write(self, path: Path) -> None:
        """Write every series for node_exporter's textfile collector, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        write_to_textfile(str(path), self.registry)


def write_metrics(path: Path, observations: Iterable[Observation]) -> None:
    """Write a textfile with these observations alone; see `EdgeMetrics.write`."""
    metrics = EdgeMetrics()
    metrics.observe(observations)
    metrics.write(path)


def _make(name: str, series: Series, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    labels = tuple(series.labels)
    made: Counter | Gauge | Histogram
    match series.kind:
        case "gauge":
            return Gauge(name, series.text, labels, registry=registry)
        case "histogram":
            made = Histogram(name, series.text, labels, buckets=series.buckets, registry=registry)
        case _:
            made = Counter(name, series.text, labels, registry=registry)
    # A series that starts at 0 lets rate() see its first increment.
    if labels:
        for values in itertools.product(*series.labels.values()):
            made.labels(*values)
    return made
