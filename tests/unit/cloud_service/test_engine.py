"""The engine's start: whatever goes wrong on the device thread, whoever waits for the model is told."""

from __future__ import annotations

import asyncio

import pytest

from cloud_service.config import Timings
from cloud_service.engine import Engine
from cloud_service.metrics import Metrics
from diffusion.model import Model


class NativePanic(BaseException):
    """What native code raises when it panics: no Exception."""


def panics() -> Model:
    raise NativePanic("index out of bounds")


async def test_a_panic_while_loading_is_told_and_not_waited_for() -> None:
    engine = Engine(
        panics,
        max_batch=1,
        compile_steps=False,
        timings=Timings(),
        metrics=Metrics(),
        deliver=lambda events: None,
        on_death=lambda: None,
    )
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="cannot be run here: NativePanic: index out of bounds"):
            await engine.start()
