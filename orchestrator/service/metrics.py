"""The fleet's Prometheus series. Names and labels are a contract: dashboards and alerts are written against them."""

from __future__ import annotations

import importlib.metadata

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from orchestrator.plan import MODES
from orchestrator.service.estimates import prediction_ratio
from wire.errors import Unauthenticated
from wire.fleet_messages import HANDOFF_STAGES, OUTCOMES, PAPER, SECONDS_BUCKETS, Replica, SessionReport

_RATIOS = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
SEARCHED = "searched"
_SOURCES = ("cloud", "extrapolated", "edge", "correction")


class FleetMetrics:
    """The series of one orchestrator, in a registry of its own; `replica` is an address of its replicas, no other."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"ecdiff_fleet_replica_{name}", text, ["replica"], registry=registry)

        self._up = gauge("up", "Whether the replica said SERVING when it was last asked.")
        self._sessions = gauge("sessions", "Sessions that run on the replica.")
        self._max_sessions = gauge("max_sessions", "Sessions that may run on the replica.")
        self._queue = gauge("queue", "Sessions that wait for the replica's device.")
        self._step = gauge("step_seconds", "Estimate of one real evaluation on the replica.")
        self._rtt = gauge("rtt_seconds", "Round trip to the replica as edges reported it, median of recent ones.")
        self._plans = Counter("ecdiff_fleet_plans", "Plans handed out, by origin.", ["origin"], registry=registry)
        self._generations = Counter(
            "ecdiff_fleet_generations",
            "Generations that edges reported, by mode and outcome.",
            ["mode", "outcome"],
            registry=registry,
        )
        self._generation = Histogram(
            "ecdiff_fleet_generation_seconds",
            "Prompt to pictures.",
            ["mode"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._handoff = Histogram(
            "ecdiff_fleet_handoff_seconds",
            "Handoff latency, by stage.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._nfe = Counter(
            "ecdiff_fleet_nfe", "Steps, by the source of their prediction.", ["source"], registry=registry
        )
        self._token_refusals = Counter(
            "ecdiff_fleet_token_refusals", "Calls refused for a token that was wrong or missing.", registry=registry
        )
        self._ratio = Histogram(
            "ecdiff_fleet_prediction_ratio", "Measured over predicted latency.", buckets=_RATIOS, registry=registry
        )
        build = Info("ecdiff_build", "What runs here.", registry=registry)
        build.info({"version": importlib.metadata.version("ecdiff"), "component": "orchestrator"})
        self._create_known_labels()

    def _create_known_labels(self) -> None:
        # A series that starts at 0 lets rate() see its first increment.
        for origin in (SEARCHED, PAPER):
            self._plans.labels(origin)
        for mode in MODES:
            self._generation.labels(mode)
            for outcome in OUTCOMES:
                self._generations.labels(mode, outcome)
        for stage in HANDOFF_STAGES:
            self._handoff.labels(stage)
        for source in _SOURCES:
            self._nfe.labels(source)

    def plan(self, origin: str) -> None:
        """Count a plan that was handed out: every file's name is `searched`."""
        self._plans.labels(PAPER if origin == PAPER else SEARCHED).inc()

    def token_refused(self, error: Unauthenticated) -> None:
        """Count a call that was refused for its token."""
        self._token_refusals.inc()

    def report(self, report: SessionReport) -> None:
        """Count a generation whose mode and outcome are known ones."""
        self._generations.labels(report.mode, report.outcome).inc()
        for source in _SOURCES:
            self._nfe.labels(source).inc(getattr(report, f"nfe_{source}"))
        if report.outcome in ("done", "fallback"):
            self._generation.labels(report.mode).observe(report.total_seconds)
        for stage, value in report.handoff_seconds.items():
            self._handoff.labels(stage).observe(value)
        ratio = prediction_ratio(report)
        if ratio is not None:
            self._ratio.observe(ratio)

    def replica(self, replica: Replica) -> None:
        """Show what is known of a replica; what nobody knows, or not any more, has no series."""
        address = replica.address
        self._up.labels(address).set(replica.is_up)
        if replica.model is not None:
            self._sessions.labels(address).set(replica.load.sessions)
            self._queue.labels(address).set(replica.load.queue)
            self._max_sessions.labels(address).set(replica.max_sessions)
        if replica.step_seconds:
            self._step.labels(address).set(replica.step_seconds)
        else:
            self._step.remove(address)
        if replica.rtt_seconds is not None:
            self._rtt.labels(address).set(replica.rtt_seconds)
        else:
            self._rtt.remove(address)

    def replica_gone(self, address: str) -> None:
        """Show nothing of a replica any more."""
        for gauge in (self._up, self._sessions, self._queue, self._max_sessions, self._step, self._rtt):
            gauge.remove(address)
