"""A cloud service but for its ports: the device, the sessions and the methods, whatever carries the calls."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Awaitable, Callable

from cloud_service.clients import Reading
from cloud_service.config import LOGGER_NAME, ServerConfig
from cloud_service.engine import Engine
from cloud_service.metrics import Metrics
from cloud_service.opening import OpeningMemory
from cloud_service.registry import Registry
from cloud_service.service import Service
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
        on_hanging: Told when the device begins to hang, and when it is back; None: whoever asks `hangs` sees it.

    Attributes:
        metrics: What it counts.
        servicer: Its methods; they refuse until the model is loaded.
        died: Set when the device thread has ended by an error of its own, the device is lost, or hangs for good.
    """

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[], Model],
        *,
        on_hanging: Callable[[bool], Awaitable[None]] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.died = asyncio.Event()
        self._config = config
        self._on_hanging = on_hanging
        self._busy_since: float | None = None
        self._busy_seconds = 0.0
        self._watch: asyncio.Task[None] | None = None
        self._ends_at = 0.0
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
            compile_steps=config.compile_steps,
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
            log_prompts=config.log_prompts,
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
        self._watch = asyncio.create_task(self._watch_device())
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
        return self._registry.hangs

    @property
    def num_running(self) -> int:
        """Sessions that hold one of the `max_sessions` places."""
        return self._registry.num_running

    async def _watch_device(self) -> None:
        """Tell of a device that hangs, and give up one that does not come back within as long again.

        Looks are counted and not seconds: a pause of this very process is no hang of its device.
        """
        while not self.died.is_set():
            await asyncio.sleep(self._config.timings.watch_seconds)
            try:
                await self._look_at_device()
            except Exception:  # whatever it is: else nobody would notice that the device is watched no more
                _log.exception("watching the device failed")

    async def _look_at_device(self) -> None:
        before, self._busy_since = self._busy_since, self._engine.busy_since
        is_at_the_same = self._busy_since is not None and self._busy_since == before
        self._busy_seconds = self._busy_seconds + self._config.timings.watch_seconds if is_at_the_same else 0.0
        if self._busy_seconds > 2 * self._engine.stuck_seconds:
            _log.error("the device does not come back")
            self.died.set()
        await self._set_hanging(self._busy_seconds > self._engine.stuck_seconds)

    async def _set_hanging(self, hangs: bool) -> None:
        if hangs is self.hangs:
            return
        if hangs:
            _log.error("the device hangs", extra={"step_seconds": self._engine.step_seconds})
        else:
            _log.info("the device is back")
        if self._on_hanging is not None:
            await self._on_hanging(hangs)
        self._registry.set_hanging(hangs)

    async def drain(self) -> None:
        """Let nobody in, and let running sessions finish.

        Those that are not done near the end of the grace period end then, while their clients can still be told: they
        go on elsewhere. With a device that died none can finish, and there is nothing to wait for.
        """
        if self._watch is not None:
            self._watch.cancel()
        grace_seconds = 0.0 if self.died.is_set() else self._config.grace_seconds
        self._ends_at = time.monotonic() + grace_seconds
        await self._registry.drain(grace_seconds - min(self._config.timings.last_words_seconds, grace_seconds / 2))

    async def stop(self) -> None:
        """End the device thread, with what is left of the grace period for its last step."""
        if self._service.served is not None:
            left_seconds = self._ends_at - time.monotonic()
            await self._engine.stop(max(left_seconds, self._config.timings.last_words_seconds))

    def _on_death(self) -> None:
        self._registry.fail_all(ModelError("the cloud's device thread died"))
        self.died.set()
