"""The small model on a thread of its own, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from diffusion.loading import load_model
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.trajectory import StepResult, Trajectory, denoise

T = TypeVar("T")


class EdgeModel:
    """The small model and the one thread that runs it. Make one with `await EdgeModel.load(...)`."""

    def __init__(self, model: Model, executor: ThreadPoolExecutor) -> None:
        self._model = model
        self._executor = executor

    @classmethod
    async def load(cls, path_or_id: str, *, device: str = "auto", dtype: str = "auto") -> EdgeModel:
        """Load a model on the thread that will run it.

        Raises:
            ValueError: The folder or device cannot be used.
            OSError: Nothing to load there.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-device")
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(executor, lambda: load_model(path_or_id, device=device, dtype=dtype))
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(model, executor)

    @property
    def model(self) -> Model:
        """The loaded model; only its `info`, `device` and `dtype` may be used outside the thread."""
        return self._model

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `function` on the device thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def encode_prompt(self, prompt: str, negative_prompt: str, *, guided: bool) -> Conditioning:
        """Encode the prompt with the edge's own text encoder."""
        return await self.run(self._model.encode_prompt, prompt, negative_prompt, guided=guided)

    async def decode(self, latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Decode scheduler latents `[B, C, H, W]` to pictures `[B, H, W, 3]`, uint8."""
        return await self.run(self._model.decode, latents)

    async def finish(
        self,
        trajectory: Trajectory,
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        guidance_rescale: float,
        on_step: Callable[[StepResult], None],
    ) -> float:
        """Run every remaining step of `trajectory` on the small model.

        `on_step` is called on the event loop. Cancelling stops the thread before its next step.

        Returns:
            When the first step began, on `time.perf_counter`'s clock.
        """
        loop = asyncio.get_running_loop()
        with _stop_flag() as stopped:
            return await self.run(
                self._finish,
                trajectory,
                conditioning,
                guidance_scale,
                guidance_rescale,
                lambda result: loop.call_soon_threadsafe(on_step, result),
                stopped,
            )

    def _finish(
        self,
        trajectory: Trajectory,
        conditioning: Conditioning,
        guidance_scale: float,
        guidance_rescale: float,
        report: Callable[[StepResult], object],
        stopped: threading.Event,
    ) -> float:
        began = time.perf_counter()

        def evaluate(at: Trajectory) -> torch.Tensor:
            request = Evaluation(
                latents=at.model_input(),
                timestep=at.timestep,
                conditioning=conditioning,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
            )
            (prediction,) = self._model.evaluate([request])
            return prediction

        steps = denoise(
            trajectory,
            evaluate,
            lambda _: True,
            stop_step=trajectory.schedule.num_steps,
            prediction_type=self._model.info.prediction_type,
        )
        for result in steps:
            report(result)
            if stopped.is_set():
                break
        return began


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """An event that is set when the block is left, by an exception too."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()
