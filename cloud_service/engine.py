"""The engine: one thread that owns the device, and the event loop's handle on it."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cloud_service.config import LOGGER_NAME, Timings
from cloud_service.memory import BatchCost, DeviceMemory, device_memory, measure_batches
from cloud_service.metrics import Metrics
from cloud_service.request import Request
from cloud_service.session import SessionEvent
from cloud_service.worker import Worker, ran_out_of_memory
from diffusion.model import Evaluation, Model
from wire.messages import Correct

_log = logging.getLogger(LOGGER_NAME)

Deliver = Callable[[list[tuple[str, SessionEvent]]], None]
# Results of cheap steps share a wake-up of the event loop, but none waits longer than this for company.
_MAX_HELD_SECONDS = 0.005
# Warming up evaluates once more where that takes less than this: the first evaluation pays for lazy starts.
_CHEAP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """The loaded model, and what only a run shows of it.

    Attributes:
        model: Its methods that compute belong to the device thread; the event loop may read its facts.
        embeds_shape: `[1, L, D]` of an encoded prompt.
        step_seconds: One evaluation at the default size.
        memory: Where forward passes live; None where nobody can say what it has.
        batch_cost: What a batch takes of it; None where nobody can say.
    """

    model: Model
    embeds_shape: tuple[int, ...]
    step_seconds: float
    memory: DeviceMemory | None
    batch_cost: BatchCost | None

    def has_room_for(self, latents_shape: tuple[int, ...]) -> bool:
        """Whether a forward pass over latents `[B, C, H, W]` finds room, by what the default size took."""
        if self.memory is None or self.batch_cost is None:
            return True
        default = math.prod(self.model.latents_shape(0, 0, 1))
        return self.batch_cost.fits(math.prod(latents_shape) / default, self.memory)


class Engine:
    """Runs sessions on the device thread; every method here is called on the event loop and returns at once.

    Args:
        load: Loads the model; called on the device thread.
        max_batch: Most sessions in one forward pass.
        timings: When the device hangs.
        metrics: Where steps are counted.
        deliver: Takes events, `(session_id, event)` in order, on the event loop.
        on_death: Called on the event loop when the device thread ends by an error of its own; no session
            gets another event after that.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        *,
        max_batch: int,
        timings: Timings,
        metrics: Metrics,
        deliver: Deliver,
        on_death: Callable[[], None],
    ) -> None:
        self._load = load
        self._max_batch = max_batch
        self._timings = timings
        self._metrics = metrics
        self._deliver = deliver
        self._on_death = on_death
        self._commands: queue.SimpleQueue[Callable[[Worker], None]] = queue.SimpleQueue()
        self._stopping = False
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread

    async def start(self) -> Served:
        """Load the model, warm it up, and return what is served.

        Raises:
            ValueError: It is no model that can be run here.
            OSError: It cannot be read or fetched.
            MemoryError: There is no room for it.
        """
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[Served] = self._loop.create_future()
        # A daemon: a process told to stop at once does not wait for a model that is still loading.
        self._thread = threading.Thread(target=self._run, args=(ready,), name="device", daemon=True)
        self._thread.start()
        return await ready

    def open(self, session_id: str, request: Request) -> None:
        """Take a session in; its first event is Opened or an error."""
        self._commands.put(lambda worker: worker.open(session_id, request))

    def hand_off(self, session_id: str, step_index: int) -> None:
        """Stop a session before `step_index`, or before its next step if that is past."""
        arrived_at = time.monotonic()
        self._commands.put(lambda worker: worker.hand_off(session_id, step_index, arrived_at))

    def correct(self, session_id: str, correct: Correct) -> None:
        """Evaluate the model once on the latents that the client sent."""
        self._commands.put(lambda worker: worker.correct(session_id, correct))

    def close(self, session_id: str) -> None:
        """Forget a session; it takes no step that has not begun."""
        self._commands.put(lambda worker: worker.close(session_id))

    def queue_position(self, session_id: str) -> int:
        """Return how many sessions are ahead of this one; a session that the device has not seen yet is last."""
        positions = self._worker.positions if self._worker else {}
        return positions.get(session_id, len(positions))

    @property
    def queue_length(self) -> int:
        """Sessions that wait for the device while others are on it."""
        return sum(position > 0 for position in self._worker.positions.values()) if self._worker else 0

    @property
    def step_seconds(self) -> float:
        """Moving average of one evaluation, 0 while loading."""
        return self._worker.step_seconds if self._worker else 0.0

    @property
    def busy_since(self) -> float | None:
        """When the forward pass that runs began, `time.monotonic()` seconds; None while none runs."""
        return self._worker.busy_since if self._worker else None

    @property
    def stuck_seconds(self) -> float:
        """A forward pass that takes longer than this hangs."""
        return max(self._timings.stuck_seconds, self._timings.stuck_steps * self.step_seconds)

    async def stop(self, wait_seconds: float) -> None:
        """End the device thread after its step; leave one behind that takes longer than `wait_seconds`."""
        self._stopping = True
        self._commands.put(lambda _worker: None)
        await asyncio.to_thread(self._thread.join, wait_seconds)

    # ------------------------------------------------------------------------------ device thread

    def _run(self, ready: asyncio.Future[Served]) -> None:
        with torch.inference_mode():
            try:
                served = warm_up(self._load(), max_batch=self._max_batch)
            except Exception as error:
                self._loop.call_soon_threadsafe(_settle, ready, _loading_error(error))
                return
            outgoing = _Batches(self._loop, self._deliver)
            self._worker = Worker(
                served.model,
                max_batch=self._max_batch,
                step_seconds=served.step_seconds,
                metrics=self._metrics,
                outgoing=outgoing,
            )
            self._loop.call_soon_threadsafe(_settle, ready, served)
            try:
                while not self._stopping:
                    self._take_commands(self._worker, outgoing)
                    self._worker.turn()
            except BaseException:  # whatever it is: a device that nobody runs any more must be told of
                _log.exception("the device thread died")
                self._loop.call_soon_threadsafe(self._on_death)

    def _take_commands(self, worker: Worker, outgoing: _Batches) -> None:
        """Run every command that waits; with nothing else to do, wait for one."""
        if worker.idle:
            worker.positions = {}
            outgoing.flush()
            self._commands.get()(worker)
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command(worker)


class _Batches:
    """Events on their way to the event loop; several share one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._loop = loop
        self._deliver = deliver
        self._events: list[tuple[str, SessionEvent]] = []
        self._held_since = 0.0

    def put(self, session_id: str, event: SessionEvent) -> None:
        """Queue `event`; hand over when the oldest one has waited long enough."""
        now = time.monotonic()
        if not self._events:
            self._held_since = now
        self._events.append((session_id, event))
        if now - self._held_since > _MAX_HELD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand over everything that is queued."""
        if self._events:
            events, self._events = self._events, []
            self._loop.call_soon_threadsafe(self._deliver, events)


def _settle(ready: asyncio.Future[Served], outcome: Served | Exception) -> None:
    if ready.cancelled():  # the service was told to stop while it was loading
        return
    if isinstance(outcome, Exception):
        ready.set_exception(outcome)
    else:
        ready.set_result(outcome)


def warm_up(model: Model, *, max_batch: int) -> Served:
    """Encode an empty prompt and evaluate at the default size, so that the first client pays for no lazy start.

    Raises:
        MemoryError: A batch of `max_batch` sessions does not fit.
    """
    conditioning = model.encode_prompt("", guided=True)
    latents = torch.zeros(model.latents_shape(0, 0, 1), device=model.device, dtype=model.dtype)
    evaluation = Evaluation(latents=latents, timestep=1.0, conditioning=conditioning, guidance_scale=2.0)
    memory = device_memory(model.device)
    cost = None
    if memory is not None:
        cost = measure_batches(lambda size: _evaluate(model, [evaluation] * size), memory, max_batch=max_batch)
    step_seconds = _timed(model, evaluation)
    if step_seconds < _CHEAP_SECONDS:
        step_seconds = _timed(model, evaluation)
    return Served(
        model=model,
        embeds_shape=tuple(conditioning.prompt_embeds.shape),
        step_seconds=step_seconds,
        memory=memory,
        batch_cost=cost,
    )


def _timed(model: Model, evaluation: Evaluation) -> float:
    started = time.monotonic()
    _evaluate(model, [evaluation])
    return time.monotonic() - started


def _evaluate(model: Model, evaluations: list[Evaluation]) -> None:
    # A GPU answers before it is done; a number has to wait.
    model.evaluate(evaluations)[-1].sum().item()


def _loading_error(error: Exception) -> Exception:
    if not ran_out_of_memory(error):
        return error
    if isinstance(error, MemoryError) and str(error):
        return error
    plain = MemoryError("there is not enough memory to load the model and evaluate it at its default size")
    plain.__cause__ = error
    return plain
