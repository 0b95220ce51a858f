"""One load on the service, in turns with the raw forward: a machine whose speed drifts slows both alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from bench.intervals import ratio_interval
from bench.throughput.forward import RawForward
from bench.throughput.load import Load, offer
from bench.throughput.service import RunningClock, Service

SLICE_SECONDS = 8.0
_RAMP_SECONDS = 4.0
# Slow rows are measured until each session has made a picture on average, but no longer than this.
_MAX_SLICES = 24


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A few seconds of the service, and the raw forward right after it.

    Attributes:
        seconds: That the service ran.
        evaluations: Sampling steps that it evaluated.
        passes: Its forward passes.
        batched: Sessions in those passes.
        raw_alone: Guided evaluations per second of the raw forward, one at a time.
        raw: The same at the batch size that the service reached.
    """

    seconds: float
    evaluations: float
    passes: float
    batched: float
    raw_alone: float
    raw: float

    @property
    def rate(self) -> float:
        """Evaluations per second."""
        return self.evaluations / self.seconds


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one load came to."""

    mode: str
    num_sessions: int
    slices: list[Slice]
    load: Load

    @property
    def mean_batch(self) -> float:
        """Sessions in a forward pass."""
        return sum(each.batched for each in self.slices) / max(1.0, sum(each.passes for each in self.slices))

    @property
    def evaluations_per_second(self) -> float:
        """Of all slices together."""
        return sum(each.evaluations for each in self.slices) / sum(each.seconds for each in self.slices)

    @property
    def share_of_raw(self) -> float:
        """Of the raw forward at the same batch size, over all slices."""
        return self._total(lambda each: each.rate) / self._total(lambda each: each.raw)

    @property
    def share_of_raw_interval(self) -> tuple[float, float]:
        """Of `share_of_raw`, by its slices."""
        return ratio_interval([each.rate for each in self.slices], [each.raw for each in self.slices])

    @property
    def relative_rate(self) -> float:
        """Evaluations per second in those of the raw forward of one at a time."""
        return self._total(lambda each: each.rate) / self._total(lambda each: each.raw_alone)

    @property
    def raw_gain(self) -> float:
        """What the raw forward makes of the batch size that was reached."""
        return self._total(lambda each: each.raw) / self._total(lambda each: each.raw_alone)

    def _total(self, value: Callable[[Slice], float]) -> float:
        return sum(map(value, self.slices))


async def measure_row(service: Service, raw: RawForward, *, mode: str, num_sessions: int, num_slices: int) -> Row:
    """Offer one load until it was measured."""
    clock, load, slices = RunningClock(), Load(), list[Slice]()
    offering = asyncio.create_task(offer(service.address, load, mode=mode, num_sessions=num_sessions, clock=clock))
    try:
        await asyncio.sleep(_RAMP_SECONDS)
        while len(slices) < num_slices or (len(load.finished) < num_sessions and len(slices) < _MAX_SLICES):
            if offering.done():
                offering.result()
            slices.append(await _slice(service, raw, clock))
    finally:
        offering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await offering
    return Row(mode=mode, num_sessions=num_sessions, slices=slices, load=load)


async def _slice(service: Service, raw: RawForward, clock: RunningClock) -> Slice:
    began, before = clock(), await asyncio.to_thread(service.counts)
    await asyncio.sleep(SLICE_SECONDS)
    after = await asyncio.to_thread(service.counts)
    seconds = clock() - began
    batched, passes = after.batched - before.batched, after.passes - before.passes
    batch_size = max(1, round(batched / max(1.0, passes)))
    with service.paused(clock):
        rates = await raw.rates(sorted({1, batch_size}))
    return Slice(
        seconds=seconds,
        evaluations=after.evaluations - before.evaluations,
        passes=passes,
        batched=batched,
        raw_alone=rates[1],
        raw=rates[batch_size],
    )
