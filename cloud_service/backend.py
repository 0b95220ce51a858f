"""A cloud service but for its ports: the device, the sessions and the methods, whatever carries the calls."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Callable

from cloud_service.clients import Reading
from cloud_service.config import LOGGER_NAME, ServerConfig
from cloud_service.conversation import Service
from cloud_service.engine import Engine
from cloud_service.metrics import Metrics
from cloud_service.opening import OpeningMemory
from cloud_service.registry import Registry
from cloud_service.servicer import CloudDenoiser
from diffusion.model import Model
from wire.errors import ModelError
from wire.messages import Limits

_log = logging.getLogger(LOGGER_NAME)


class Backend:
    """One device and the sessions on it.

    Args:
        config: How much it serves.
        load: Loads the model; called on the device thread.

    Attributes:
        metrics: What it counts.
        servicer: Its methods; they refuse until the model is loaded.
        died: Set when the device thread has ended by an error of its own.
    """

    def __init__(self, config: ServerConfig, load: Callable[[], Model]) -> None:
        self.metrics = Metrics()
        self.died = asyncio.Event()
        self._config = config
        limits = Limits(max_sessions=config.max_sessions)
        self._registry = Registry(
            max_sessions=config.max_sessions,
            max_sessions_per_client=config.max_sessions_per_client or config.max_sessions,
            max_batch=config.max_batch,
            metrics=self.metrics,
        )
        self._engine = Engine(
            load,
            max_batch=config.max_batch,
            timings=config.timings,
            metrics=self.metrics,
            deliver=self._registry.deliver,
            on_death=self._on_death,
        )
        self._service = Service(
            engine=self._engine,
            registry=self._registry,
            metrics=self.metrics,
            limits=limits,
            reading=Reading(config.max_client_mbit_s),
            opening_memory=OpeningMemory(limits),
            timings=config.timings,
        )
        self.servicer = CloudDenoiser(self._service, version=importlib.metadata.version("ecdiff"))

    async def load(self) -> str:
        """Load the model; sessions are let in from then on.

        Returns:
            The model's name.

        Raises:
            ValueError: It is no model that can be run here.
            OSError: It cannot be read or fetched.
            MemoryError: There is no room for it.
        """
        started = time.monotonic()
        _log.info("loading", extra={"model": self._config.model})
        self._service.served = served = await self._engine.start()
        info = served.model.info
        _log.info(
            "serving",
            extra={
                "model": info.name,
                "device": info.device,
                "dtype": info.dtype,
                "load_seconds": round(time.monotonic() - started, 3),
            },
        )
        return info.name

    @property
    def hangs(self) -> bool:
        """Whether the device has been at one forward pass for far longer than any should take."""
        return self._engine.stuck

    @property
    def step_seconds(self) -> float:
        """Moving average of one evaluation, 0 while loading."""
        return self._engine.step_seconds

    @property
    def num_running(self) -> int:
        """Sessions that hold one of the `max_sessions` places."""
        return self._registry.num_running

    async def drain(self) -> None:
        """Let nobody in, and let running sessions finish within the grace period."""
        await self._registry.drain(self._config.grace_seconds)

    async def stop(self) -> None:
        """End the device thread."""
        if self._service.served is not None:
            await self._engine.stop()

    def _on_death(self) -> None:
        self._registry.fail_all(ModelError("the cloud's device thread died"))
        self.died.set()
