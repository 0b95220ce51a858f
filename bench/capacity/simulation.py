"""A fleet as discrete events: edges that ask for pictures, links, and devices that batch as the service does.

Nothing is computed but time. What a forward pass, an extrapolated step, a text encoder and an edge step take is
measured elsewhere and comes in as `Times`; the order of sessions on a device is the service's own
(`cloud_service.scheduling`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from bench.network import Link
from cloud_service.scheduling import MAX_WAIT_EVALUATIONS, Candidate, pick_turn

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, kw_only=True)
class Times:
    """What things take, in seconds.

    Attributes:
        pass_seconds: One forward pass, by the number of sessions in it, all of the service's work included.
        extrapolated_seconds: One extrapolated step.
        encode_prompt_seconds: The cloud's text encoder; it has the device for itself.
        edge_step_seconds: One evaluation of the small model.
        decode_seconds: The edge's decoder.
    """

    pass_seconds: Callable[[int], float]
    extrapolated_seconds: float
    encode_prompt_seconds: float
    edge_step_seconds: float
    decode_seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one picture asks for.

    Attributes:
        sources: One letter a step, as `step_sources` of a report: C, x, e.
        correction_steps: Edge steps that ask the cloud once more.
    """

    sources: str
    correction_steps: tuple[int, ...] = ()


class Device:
    """One large model: forward passes one after the other, each over sessions that wait.

    Args:
        env: The simulation.
        times: What passes take.
        max_batch: Most sessions in one pass.
    """

    def __init__(self, env: simpy.Environment, times: Times, *, max_batch: int) -> None:
        self.num_sessions = 0
        self.busy_seconds = 0.0
        self.evaluations = 0
        self._env = env
        self._times = times
        self._max_batch = max_batch
        self._waiting: dict[str, tuple[Candidate, simpy.Event]] = {}
        self._numbers = itertools.count()
        self._wanted = env.event()
        env.process(self._run())

    def evaluate(self) -> simpy.Event:
        """Return the event of one evaluation's end."""
        return self._wait(key="step")

    def encode(self) -> simpy.Event:
        """Return the event of one prompt's being encoded."""
        return self._wait(key=next(self._numbers))

    def extrapolate(self) -> simpy.Event:
        """Return the event of one extrapolated step's end."""
        return self._wait(key=None)

    def _wait(self, key: object) -> simpy.Event:
        name, done = str(next(self._numbers)), self._env.event()
        self._waiting[name] = (Candidate(session_id=name, ready_at=self._env.now, key=key), done)
        if not self._wanted.triggered:
            self._wanted.succeed()
        return done

    def _run(self) -> Process:
        while True:
            if not self._waiting:
                self._wanted = self._env.event()
                yield self._wanted
            candidates = [candidate for candidate, _ in self._waiting.values()]
            max_wait_seconds = MAX_WAIT_EVALUATIONS * self._times.pass_seconds(1)
            turn = pick_turn(
                candidates, now=self._env.now, max_wait_seconds=max_wait_seconds, max_batch=self._max_batch
            )
            names = turn.extrapolate or turn.evaluate
            seconds = self._seconds(names, extrapolated=bool(turn.extrapolate))
            self.busy_seconds += seconds
            yield self._env.timeout(seconds)
            for name in names:
                self._waiting.pop(name)[1].succeed()

    def _seconds(self, names: Sequence[str], *, extrapolated: bool) -> float:
        if extrapolated:
            return len(names) * self._times.extrapolated_seconds
        if self._waiting[names[0]][0].key != "step":
            return self._times.encode_prompt_seconds
        self.evaluations += len(names)
        return self._times.pass_seconds(len(names))


@dataclass(kw_only=True)
class Seen:
    """What the edges saw.

    Attributes:
        finished: When each picture was there, and what it took.
    """

    finished: list[tuple[float, float]] = field(default_factory=list)


def picture(
    env: simpy.Environment, device: Device, work: Work, link: Link, times: Times, latents_bytes: int, seen: Seen
) -> Process:
    """Make one picture: the cloud's part, the handoff, the edge's part with its corrections."""
    began = env.now
    one_way = link.latency_seconds
    transfer = 0.0 if link.bytes_per_second is None else latents_bytes / link.bytes_per_second
    cloud_steps = work.sources.rstrip("e")
    if cloud_steps:
        yield env.timeout(one_way)
        device.num_sessions += 1
        yield device.encode()
        for source in cloud_steps:
            yield device.evaluate() if source == "C" else device.extrapolate()
        device.num_sessions -= 1
        yield env.timeout(one_way + transfer)
    for step in range(len(cloud_steps), len(work.sources)):
        if step in work.correction_steps:
            # The edge's own evaluation runs beside the round trip.
            own = env.timeout(times.edge_step_seconds)
            yield env.timeout(one_way + transfer)
            yield device.evaluate()
            yield env.timeout(one_way + transfer)
            yield own
        else:
            yield env.timeout(times.edge_step_seconds)
    yield env.timeout(times.decode_seconds)
    seen.finished.append((env.now, env.now - began))


def closed_loop(
    work: Work, times: Times, *, num_sessions: int, seconds: float, max_batch: int
) -> tuple[Device, Seen, float]:
    """Keep so many sessions going on one device over no network; return it, what was seen, and the time simulated."""
    env, seen = simpy.Environment(), Seen()
    device = Device(env, times, max_batch=max_batch)

    def client() -> Process:
        while True:
            yield env.process(picture(env, device, work, Link(), times, 0, seen))

    for _ in range(num_sessions):
        env.process(client())
    env.run(until=seconds)
    return device, seen, seconds


def fleet(
    work: Work,
    times: Times,
    *,
    num_devices: int,
    pictures_per_second: float,
    links: Sequence[Link],
    latents_bytes: int,
    seconds: float,
    max_batch: int,
    seed: int,
) -> tuple[list[Device], Seen]:
    """Let pictures be asked for at random times, each on the device with the fewest sessions."""
    env, seen, draw = simpy.Environment(), Seen(), random.Random(seed)
    devices = [Device(env, times, max_batch=max_batch) for _ in range(num_devices)]

    def arrivals() -> Process:
        while True:
            yield env.timeout(draw.expovariate(pictures_per_second))
            device = min(devices, key=lambda each: each.num_sessions)
            env.process(picture(env, device, work, draw.choice(links), times, latents_bytes, seen))

    env.process(arrivals())
    env.run(until=seconds)
    return devices, seen
