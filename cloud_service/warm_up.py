"""The first evaluations, before anybody is let in: what a batch takes, how long a step takes, and compiling."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch

from cloud_service.config import LOGGER_NAME
from cloud_service.memory import BatchCost, DeviceMemory, device_memory, measure_batches
from cloud_service.worker import ran_out_of_memory
from diffusion.compiled import compiled_sizes
from diffusion.model import Evaluation, Model

_log = logging.getLogger(LOGGER_NAME)

# Warming up evaluates once more where that takes less than this: the first evaluation pays for lazy starts.
_CHEAP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """The loaded model, and what only a run shows of it.

    Attributes:
        model: Its methods that compute belong to the device thread; the event loop may read its facts.
        embeds_shape: `[1, L, D]` of an encoded prompt.
        pooled_embeds_shape: `[1, P]`; None where the family has none.
        step_seconds: One evaluation at the default size.
        memory: Where forward passes live; None where nobody can say what it has.
        batch_cost: What a batch takes of it; None where nobody can say.
    """

    model: Model
    embeds_shape: tuple[int, ...]
    pooled_embeds_shape: tuple[int, ...] | None
    step_seconds: float
    memory: DeviceMemory | None
    batch_cost: BatchCost | None

    def has_room_for(self, latents_shape: tuple[int, ...]) -> bool:
        """Whether a forward pass over latents `[B, C, H, W]` finds room, by what the default size took."""
        if self.memory is None or self.batch_cost is None:
            return True
        default = math.prod(self.model.latents_shape(0, 0, 1))
        return self.batch_cost.fits(math.prod(latents_shape) / default, self.memory)


def warm_up(model: Model, *, max_batch: int, compile_steps: bool) -> Served:
    """Encode an empty prompt and evaluate at the default size, so that the first client pays for no lazy start.

    Raises:
        ValueError: The steps cannot be compiled here.
        MemoryError: A batch of `max_batch` sessions does not fit.
    """
    conditioning = model.encode_prompt("", guided=True)
    latents = torch.zeros(model.latents_shape(0, 0, 1), device=model.device, dtype=model.dtype)
    evaluation = Evaluation(latents=latents, timestep=1.0, conditioning=conditioning, guidance_scale=2.0)
    memory = device_memory(model.device)
    cost = None
    if memory is not None:
        cost = measure_batches(lambda size: _evaluate(model, [evaluation] * size), memory, max_batch=max_batch)
    if compile_steps:
        # What does not fit was refused above, before the minutes that this takes. No batch is padded to more rows than
        # the largest has; what is kept for that one is missing for pictures of other sizes.
        kept_bytes = 0 if memory is None else memory.kept_bytes()
        _compile(model, max_batch=max_batch)
        if memory is not None and cost is not None:
            cost = cost.beside(memory.kept_bytes() - kept_bytes)
    step_seconds = _timed(model, evaluation)
    if step_seconds < _CHEAP_SECONDS:
        step_seconds = _timed(model, evaluation)
    pooled = conditioning.pooled_prompt_embeds
    return Served(
        model=model,
        embeds_shape=tuple(conditioning.prompt_embeds.shape),
        pooled_embeds_shape=None if pooled is None else tuple(pooled.shape),
        step_seconds=step_seconds,
        memory=memory,
        batch_cost=cost,
    )


def _compile(model: Model, *, max_batch: int) -> None:
    """Compile for up to `max_batch` sessions; the log says how far it is."""

    def compiled(num_rows: int, seconds: float) -> None:
        _log.info("compiled", extra={"rows": num_rows, "seconds": round(seconds, 3)})

    sizes = compiled_sizes(2 * max_batch)  # a guided picture is two rows
    _log.info("compiling; this takes minutes", extra={"rows": sizes})
    try:
        model.compile(sizes, on_size=compiled)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise MemoryError(
            f"there is not enough memory to compile batches of {max_batch} sessions: "
            "say a smaller --max-batch, or leave out --compile"
        ) from error


def _timed(model: Model, evaluation: Evaluation) -> float:
    started = time.monotonic()
    _evaluate(model, [evaluation])
    return time.monotonic() - started


def _evaluate(model: Model, evaluations: list[Evaluation]) -> None:
    # A GPU answers before it is done; a number has to wait.
    model.evaluate(evaluations)[-1].sum().item()
