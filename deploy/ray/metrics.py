"""One port where Prometheus finds the series of all replicas, each with the label `replica`."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.serve.handle import DeploymentHandle

from cloud_service.config import LOGGER_NAME

_log = logging.getLogger(LOGGER_NAME)
_SECONDS = 5.0


class ReplicaSeries(Collector):
    """Asks every replica at each scrape.

    Args:
        replicas: Their handle.
    """

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        """Yield the families of all replicas, put together; what one that does not answer has is left out."""
        families: dict[str, Metric] = {}
        for answer in self._replicas.broadcast("exposition").results(timeout_s=_SECONDS, return_exceptions=True):
            if isinstance(answer, Exception):
                _log.warning("a replica does not tell its series", extra={"reason": str(answer)})
                continue
            replica, text = answer
            for family in text_string_to_metric_families(text):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica}) for sample in family.samples
                ]
        return families.values()


def registry_of(replicas: DeploymentHandle) -> CollectorRegistry:
    """Return what the metrics port shows."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReplicaSeries(replicas))
    return registry
