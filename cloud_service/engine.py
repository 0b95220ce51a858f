"""The engine: one thread that owns the device, and the event loop's handle on it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable

import torch

from cloud_service.config import LOGGER_NAME, Timings
from cloud_service.metrics import Metrics
from cloud_service.request import Request
from cloud_service.session import SessionEvent
from cloud_service.warm_up import Served, warm_up
from cloud_service.worker import Worker, ran_out_of_memory
from diffusion.model import Model
from diffusion.weight_files import first_line
from wire.messages import Array, Correct

_log = logging.getLogger(LOGGER_NAME)

Deliver = Callable[[list[tuple[str, SessionEvent]]], None]
# Results of cheap steps share a wake-up of the event loop, but none waits longer than this for company.
_MAX_HELD_SECONDS = 0.005


class Engine:
    """Runs sessions on the device thread; every method here is called on the event loop and returns at once.

    Args:
        load: Loads the model; called on the device thread.
        max_batch: Most sessions in one forward pass.
        compile_steps: Whether to compile the model's steps before the first session.
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
        compile_steps: bool,
        timings: Timings,
        metrics: Metrics,
        deliver: Deliver,
        on_death: Callable[[], None],
    ) -> None:
        self._load = load
        self._max_batch = max_batch
        self._compile_steps = compile_steps
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

    def decode(self, session_id: str, latents: Array) -> None:
        """Decode clean latents that the client sent."""
        self._commands.put(lambda worker: worker.decode(session_id, latents))

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
                served = warm_up(self._load(), max_batch=self._max_batch, compile_steps=self._compile_steps)
            except BaseException as error:  # whatever it is: else somebody would wait for the model for ever
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


def _loading_error(error: BaseException) -> Exception:
    if not isinstance(error, Exception):  # a panic of native code
        unusable = ValueError(f"the model cannot be run here: {type(error).__name__}: {first_line(error)}")
        unusable.__cause__ = error
        return unusable
    if not ran_out_of_memory(error):
        return error
    if isinstance(error, MemoryError) and str(error):
        return error
    plain = MemoryError("there is not enough memory to load the model and evaluate it at its default size")
    plain.__cause__ = error
    return plain
