"""What all conversations of one service share."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_service.clients import Reading
from cloud_service.config import Timings
from cloud_service.engine import Engine
from cloud_service.metrics import Metrics
from cloud_service.opening import OpeningMemory
from cloud_service.registry import Registry
from cloud_service.warm_up import Served
from wire.errors import NotServing
from wire.messages import Limits


@dataclass(kw_only=True)
class Service:
    """What every conversation shares; `served` is None until the model is loaded."""

    engine: Engine
    registry: Registry
    metrics: Metrics
    limits: Limits
    reading: Reading
    opening_memory: OpeningMemory
    timings: Timings
    log_prompts: bool = False
    served: Served | None = None

    def ready(self) -> Served:
        """Return what is served.

        Raises:
            NotServing: The model is still loading.
        """
        if self.served is None:
            raise NotServing("the model is still loading")
        return self.served
