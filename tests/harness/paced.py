"""A real model whose pace a test sets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import torch

from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from harness.reference import CLOUD_MODEL

PATIENCE_SECONDS = 60.0
# Nothing can be copied there, and waiting for it fails: as with a GPU that an illegal access has spoilt.
LOST_DEVICE = torch.device("cuda", 99)


class PacedModel:
    """A real model that a test can stop before an evaluation, watch, and make fail.

    Without `pace` it runs freely. `before` is called on the device thread with the evaluations of each batch, `after`
    with their answers; both may raise.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._permits = threading.Semaphore(0)
        self._paced = False
        self.num_begun = 0
        self.batch_sizes: list[int] = []
        self.before: Callable[[Sequence[Evaluation]], None] = lambda evaluations: None
        self.after: Callable[[list[torch.Tensor]], list[torch.Tensor]] = lambda predictions: predictions

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def pace(self) -> None:
        """From now on each evaluation needs a permit."""
        self._paced = True

    def permit(self, count: int = 1) -> None:
        self._permits.release(count)

    def run_freely(self) -> None:
        self._paced = False
        self._permits.release(1000)

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[torch.Tensor]:
        self.num_begun += 1
        self.batch_sizes.append(len(evaluations))
        self.before(evaluations)
        if self._paced:
            assert self._permits.acquire(timeout=PATIENCE_SECONDS)
        return self.after(self._model.evaluate(evaluations))

    def lose_device(self) -> None:
        """From now on the device does nothing any more, and says so."""
        self.device = LOST_DEVICE

    async def begun(self, count: int) -> None:
        """Wait until `count` evaluations have begun since `forget`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.num_begun < count:
                await asyncio.sleep(0.002)

    def forget(self) -> None:
        self.num_begun = 0
        self.batch_sizes.clear()


_tiny: list[Model] = []


def tiny_model() -> Model:
    """The tiny cloud model, loaded once."""
    if not _tiny:
        torch.set_num_threads(1)
        _tiny.append(load_model(CLOUD_MODEL, device="cpu"))
    return _tiny[0]
