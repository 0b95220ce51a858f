"""What happens on the device thread: one turn after another over the open generations. Synchronous, no locks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch

from cloud_service.config import LOGGER_NAME
from cloud_service.generation import Forward, Generation, Need
from cloud_service.metrics import Metrics
from cloud_service.request import Request
from cloud_service.room import Room
from cloud_service.scheduling import MAX_WAIT_EVALUATIONS, Candidate, in_line, pick_turn
from cloud_service.session import SessionEvent, Stepped
from diffusion.devices import wait_for
from diffusion.model import Model
from wire.errors import EcdiffError, ModelError
from wire.messages import Array, Correct, Correction, Source, Step

_log = logging.getLogger(LOGGER_NAME)
# Weight of the newest evaluation in the moving average that Describe publishes.
_NEWEST_WEIGHT = 0.2
_NO_ROOM = ("can't allocate memory", "out of memory")


class Outgoing(Protocol):
    """The way back to the event loop."""

    def put(self, session_id: str, event: SessionEvent) -> None:
        """Queue `event`."""

    def flush(self) -> None:
        """Hand over everything that is queued, in one wake-up."""


class DeviceLost(Exception):
    """The device fails whatever it is given until the process ends, as a GPU does after an illegal access."""


class Worker:
    """Every open generation on one device.

    Args:
        model: The large model.
        max_batch: Most sessions in one forward pass.
        step_seconds: What an evaluation took while warming up; the moving average starts from it.
        metrics: Where steps are counted.
        outgoing: Where events go.
    """

    def __init__(
        self, model: Model, *, max_batch: int, step_seconds: float, metrics: Metrics, outgoing: Outgoing
    ) -> None:
        self.positions: dict[str, int] = {}
        self.step_seconds = step_seconds
        self.busy_since: float | None = None
        self._model = model
        self._max_batch = max_batch
        self._room = Room(max_batch)
        self._metrics = metrics
        self._outgoing = outgoing
        self._generations: dict[str, Generation] = {}

    # ------------------------------------------------------------------------------ commands

    def open(self, session_id: str, request: Request) -> None:
        """Take a new session in; its prompt is encoded when its turn comes."""
        self._generations[session_id] = Generation(session_id, request, self._model)

    def hand_off(self, session_id: str, step_index: int, arrived_at: float) -> None:
        """Stop a session before `step_index`, or before its next step if that is past."""
        if generation := self._generations.get(session_id):
            self._attempt(generation, lambda: generation.hand_off(step_index, arrived_at))

    def correct(self, session_id: str, correct: Correct) -> None:
        """Queue a correction."""
        if generation := self._generations.get(session_id):
            generation.correct(correct)

    def decode(self, session_id: str, latents: Array) -> None:
        """Queue the decoding of a session's clean latents."""
        if generation := self._generations.get(session_id):
            generation.ask_to_decode(latents)

    def close(self, session_id: str) -> None:
        """Forget a session; it takes no further step."""
        if generation := self._generations.pop(session_id, None):
            for _ in range(generation.num_pending_corrections):
                self._metrics.correction("dropped")

    # ------------------------------------------------------------------------------ turns

    @property
    def idle(self) -> bool:
        """Whether no session wants the device."""
        return all(generation.need is Need.NOTHING for generation in self._generations.values())

    def turn(self) -> None:
        """Let the picked sessions advance by one step each.

        Raises:
            DeviceLost: No session can be served here any more.
        """
        candidates = self._candidates()
        now, max_wait_seconds = time.monotonic(), MAX_WAIT_EVALUATIONS * self.step_seconds
        turn = pick_turn(candidates, now=now, max_wait_seconds=max_wait_seconds, max_batch=self._max_batch)
        for session_id in turn.extrapolate:
            generation = self._generations[session_id]
            self._attempt(generation, generation.extrapolate)
        if turn.evaluate:
            batch = [self._generations[session_id] for session_id in turn.evaluate]
            batch = batch[: self._room.limit(batch[0].key, now)]
            line = in_line(candidates, now=now, max_wait_seconds=max_wait_seconds)
            self._publish_positions(line, tuple(generation.session_id for generation in batch))
            self._outgoing.flush()
            self._run(batch)
            # A real step's tensors go at once: they are what an edge that compares the models waits for.
            self._outgoing.flush()

    def _candidates(self) -> list[Candidate]:
        return [
            Candidate(
                session_id=generation.session_id,
                ready_at=generation.ready_at,
                key=None if generation.need is Need.EXTRAPOLATION else generation.key,
                deadline_at=generation.deadline_at,
            )
            for generation in self._generations.values()
            if generation.need is not Need.NOTHING
        ]

    def _publish_positions(self, line: list[Candidate], running: tuple[str, ...]) -> None:
        behind = [candidate.session_id for candidate in line if candidate.session_id not in running]
        # A new dict each time: the event loop reads it without a lock.
        self.positions = dict.fromkeys(running, 0) | {
            session_id: len(running) + index for index, session_id in enumerate(behind)
        }

    def _run(self, batch: list[Generation]) -> None:
        self.busy_since = time.monotonic()
        if batch[0].need is Need.OPENING:
            self._attempt(batch[0], batch[0].open)
        elif batch[0].need is Need.DECODING:
            self._attempt(batch[0], batch[0].decode)
        else:
            self._evaluate(batch)
        self.busy_since = None

    def _evaluate(self, batch: list[Generation]) -> None:
        started = time.monotonic()
        try:
            predictions = self._model.evaluate([generation.evaluation() for generation in batch])
            wait_for(self._model.device)
        except BaseException as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            self._check_device(error)
            if ran_out_of_memory(error):
                _log.warning("a batch found no room", extra={"sessions": len(batch)})
                self._room.too_small(batch[0].key, len(batch), started)
            predictions = None
        if predictions is None:
            # One request is to blame, or the batch was too large: each alone shows which. Here and not in the handler:
            # the error holds the failed pass's tensors for as long as it is handled.
            for generation in batch:
                self._evaluate([generation])
            return
        forward = Forward(started=started, seconds=time.monotonic() - started)
        self._metrics.evaluated(batch_size=len(batch))
        for generation, prediction in zip(batch, predictions, strict=True):
            self._attempt(generation, lambda: generation.accept(prediction, forward))  # noqa: B023  (called at once)
        seconds = time.monotonic() - started
        self.step_seconds += _NEWEST_WEIGHT * (seconds - self.step_seconds)

    # ------------------------------------------------------------------------------ results

    def _attempt(self, generation: Generation, work: Callable[[], list[SessionEvent]]) -> None:
        """Do one session's work; its failure ends that session and no other.

        That takes in what is no Exception: a panic of the tokenizer's Rust is none.
        """
        try:
            events = work()
        except BaseException as error:
            self._fail(generation, error)
            return
        for event in events:
            self._count(event)
            self._outgoing.put(generation.session_id, event)

    def _count(self, event: SessionEvent) -> None:
        match event:
            case Stepped(step=Step(source=Source.CLOUD) as step):
                self._metrics.cloud_step(
                    compute_seconds=step.compute_seconds,
                    queue_seconds=step.queue_seconds,
                    extrapolation_error=step.extrapolation_error,
                )
            case Stepped():
                self._metrics.extrapolated_step()
            case Correction():
                self._metrics.correction("answered")

    def _check_device(self, error: BaseException) -> None:
        """Return where the failure was a request's own.

        Raises:
            DeviceLost: The device itself cannot be reached any more: to go on would fail one session after the other.
        """
        try:
            wait_for(self._model.device)
        except Exception:
            raise DeviceLost(f"{type(error).__name__}: {error}") from error

    def _fail(self, generation: Generation, error: BaseException) -> None:
        if not isinstance(error, EcdiffError):
            self._check_device(error)
        del self._generations[generation.session_id]
        for _ in range(generation.num_pending_corrections):
            self._metrics.correction("failed")
        if not isinstance(error, EcdiffError):
            _log.error("the model failed", extra={"session_id": generation.session_id}, exc_info=error)
            error = ModelError(_plain(error))
        self._outgoing.put(generation.session_id, error)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a tensor found no room; on a CPU torch has no class for that, only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)


def _plain(error: BaseException) -> str:
    if ran_out_of_memory(error):
        return "the cloud model ran out of memory"
    first_line = str(error).partition("\n")[0]
    return f"the cloud model failed: {type(error).__name__}: {first_line}"
