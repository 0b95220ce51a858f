"""The series that only a long-lived agent has (docs/metrics.md)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

from wire.fleet_messages import SECONDS_BUCKETS


class AgentMetrics:
    """The agent's own series, beside the edge's.

    Args:
        registry: The edge's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue = Gauge("ecdiff_agent_queue", "Generations that wait for their turn.", registry=registry)
        self.queue_seconds = Histogram(
            "ecdiff_agent_queue_seconds",
            "From a generation's arrival to its turn.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.start_seconds = Histogram(
            "ecdiff_agent_start_seconds",
            "From a generation's turn to the start of its first step, here or in the cloud.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
