"""The small model on a thread of its own, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from diffusion.edge_lead import EdgeLead, WantsCall
from diffusion.loading import load_model
from diffusion.lora_file import Lora
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.trajectory import StepResult
from diffusion.vae_choice import OWN_VAE, VaeChoice

T = TypeVar("T")

_NUM_RECENT = 8


class EdgeModel:
    """The small model and the one thread that runs it. Make one with `await EdgeModel.load(...)`.

    `encode_seconds`, `step_seconds` and `decode_seconds` are what encoding a prompt, a step and a decoding take,
    remembered across generations.
    """

    def __init__(self, model: Model, executor: ThreadPoolExecutor) -> None:
        self._model = model
        self._executor = executor
        self.forget_times()

    @classmethod
    async def load(
        cls,
        path_or_id: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        loras: Sequence[Lora] = (),
        offload: str = "none",
        vae: VaeChoice = OWN_VAE,
    ) -> EdgeModel:
        """Load a model on the thread that will run it; see `load_model`.

        Raises:
            ValueError: The folder or device cannot be used.
            OSError: Nothing to load there.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-device")
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(
                executor,
                lambda: load_model(path_or_id, device=device, dtype=dtype, loras=loras, offload=offload, vae=vae),
            )
            await loop.run_in_executor(executor, _warm_up, model)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(model, executor)

    @property
    def model(self) -> Model:
        """The loaded model; only its `info`, `device` and `dtype` may be used outside the thread."""
        return self._model

    def forget_times(self) -> None:
        """Begin to measure anew, when what was measured paid for lazy starts."""
        self.encode_seconds, self.step_seconds, self.decode_seconds = Typical(), Typical(), Typical()

    async def compute_on(self, num_threads: int) -> None:
        """Compute on so many threads of the CPU from now on, unless the environment says how many."""
        if "OMP_NUM_THREADS" not in os.environ:
            await self.run(torch.set_num_threads, num_threads)

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `function` on the device thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def encode_prompt(self, prompt: str, negative_prompt: str, *, guided: bool) -> Conditioning:
        """Encode the prompt with the edge's own text encoder."""
        started = time.perf_counter()
        encoded = await self.run(self._model.encode_prompt, prompt, negative_prompt, guided=guided)
        self.encode_seconds.add(time.perf_counter() - started)
        return encoded

    async def decode(self, latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Decode scheduler latents to pictures `[B, H, W, 3]`, uint8; of videos `[B, F, H, W, 3]`."""
        started = time.perf_counter()
        pixels = await self.run(self._model.decode, latents)
        self.decode_seconds.add(time.perf_counter() - started)
        return pixels

    def evaluator(
        self, conditioning: Conditioning, *, guidance_scale: float, guidance_rescale: float
    ) -> Callable[[torch.Tensor, float], torch.Tensor]:
        """Return what asks the network on one prompt: (model input `[B, C, H, W]`, timestep) -> guided prediction.

        For the device thread.
        """

        def evaluate(latents: torch.Tensor, timestep: float) -> torch.Tensor:
            evaluation = Evaluation(
                latents=latents.to(self._model.dtype),
                timestep=timestep,
                conditioning=conditioning,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
            )
            (prediction,) = self._model.evaluate([evaluation])
            return prediction

        return evaluate

    async def run_to_call(self, lead: EdgeLead, wants_call: WantsCall, on_step: Callable[[StepResult], object]) -> bool:
        """Run `EdgeLead.run_to_call` on the device thread; `on_step` is called on the event loop.

        Cancelling stops the thread before its next step. The steps' mean time is taken into `step_seconds`: they are
        what the edge computes alone, and all that a step costs is in it.
        """
        loop = asyncio.get_running_loop()
        with _stop_flag() as stopped:

            def run() -> bool:
                began = time.perf_counter()
                ends: list[float] = []

                def report(result: StepResult) -> None:
                    if stopped.is_set():
                        raise _Stopped
                    ends.append(time.perf_counter())
                    loop.call_soon_threadsafe(on_step, result)

                calls = lead.run_to_call(wants_call, report)
                if ends:
                    self.step_seconds.add((ends[-1] - began) / len(ends))
                return calls

            return await self.run(run)


class Typical:
    """What something usually takes: the median of the last times; 0 before the first."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_NUM_RECENT)

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self._recent) if self._recent else 0.0

    def add(self, seconds: float) -> None:
        """Take in one measurement."""
        self._recent.append(seconds)


def _warm_up(model: Model) -> None:
    """Encode and decode once, small: the first call of each sets things up, and the shadow waits for the prompt."""
    if model.info.text_encoder_fingerprint:
        model.encode_prompt("", guided=False)
    side = 8 * model.info.vae_scale_factor  # 8 latent pixels: enough to meet every layer
    shape = model.latents_shape(side, side, 1, min(1, model.info.default_num_frames))
    model.decode(torch.zeros(shape, device=model.device, dtype=model.dtype))


class _Stopped(Exception):
    """Nobody waits for the rest."""


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """An event that is set when the block is left, by an exception too."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()
