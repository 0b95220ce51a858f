"""A replica on Ray Serve that a test holds by the hand: its model's pace, its process, a new service inside it."""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from cloud_service.config import ServerConfig
from deploy.ray.replica import Replica
from diffusion.model import Model
from harness.paced import PacedModel, tiny_model


class HeldReplica(Replica):
    """The product's replica around a model whose pace the test sets."""

    def _load(self) -> Model:
        self._model = PacedModel(tiny_model())
        return self._model

    async def begin(self, config: ServerConfig) -> None:
        """Be a service that has just started."""
        await self._start(config)
        self._model.forget()

    async def end(self) -> None:
        """Be done with it."""
        self._model.run_freely()
        await self._backend.drain()
        await self._backend.stop()

    async def call_model(self, method: str, *arguments: Any) -> None:
        getattr(self._model, method)(*arguments)

    async def get_model(self, name: str) -> Any:
        return getattr(self._model, name)

    async def set_model(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    async def process(self) -> tuple[str, int]:
        """Return its id and that of its process."""
        return serve.get_replica_context().replica_id.unique_id, os.getpid()
