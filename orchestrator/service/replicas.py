"""Watching the replicas: every few seconds each is asked for its health and its load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.service.config import LOGGER_NAME, Timings
from orchestrator.service.fleet import Fleet
from protos import ecdiff_v1_pb2 as pb
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.calls import call_unary
from wire.convert import decode_description
from wire.convert.fleet import MAX_REPLICAS
from wire.credentials import Credentials
from wire.errors import EcdiffError, NotServing, from_status
from wire.messages import Description
from wire.resolver import Targets
from wire.targets import Endpoint

_log = logging.getLogger(LOGGER_NAME)
_SERVING = health_pb2.HealthCheckResponse.SERVING


class Watcher:
    """Asks every replica of a fleet again and again, each on its own.

    Args:
        fleet: Told what is seen.
        targets: What its replicas are; names among them are asked for again and again, too.
        credentials: For the replicas.
        timings: How often, and how long to wait.
        on_look: Called with the address after each look.
        on_gone: Called with the address of one that no name stands for any more.
    """

    def __init__(
        self,
        fleet: Fleet,
        targets: Sequence[str],
        credentials: Credentials,
        timings: Timings,
        *,
        on_look: Callable[[str], object],
        on_gone: Callable[[str], object],
    ) -> None:
        self._fleet = fleet
        self._targets = Targets(targets)
        self._credentials = credentials
        self._timings = timings
        self._on_look, self._on_gone = on_look, on_gone
        self._watching: dict[Endpoint, asyncio.Task[None]] = {}
        self._naming: asyncio.Task[None] | None = None
        self._problems: tuple[str, ...] = ()

    async def start(self) -> None:
        """Look at every replica once, all at the same time; then go on in the background."""
        await self._follow_names()
        if self._targets.have_names:
            self._naming = asyncio.create_task(self._keep_following())

    async def stop(self) -> None:
        """Stop looking."""
        if self._naming is not None:
            await _cancelled(self._naming)
        await asyncio.gather(*(_cancelled(task) for task in self._watching.values()))

    async def _keep_following(self) -> None:
        while True:
            await asyncio.sleep(self._timings.resolve_seconds)
            try:
                await self._follow_names()
            except Exception:  # whatever it is: else nobody would notice that the names are followed no more
                _log.exception("following the names failed")

    async def _follow_names(self) -> None:
        """Watch what the targets stand for now, and nothing else; return when each newcomer was looked at."""
        endpoints = await self._endpoints()
        gone = self._watching.keys() - endpoints
        await asyncio.gather(*(_cancelled(self._watching.pop(each)) for each in gone))
        self._fleet.become(endpoints, are_all=not self._targets.problems)
        for each in gone:
            self._on_gone(each.address)
            _log.info("a replica is gone", extra={"replica": each.address, "of": each.name})
        seen = []
        for new in [each for each in endpoints if each not in self._watching]:
            looked = asyncio.Event()
            seen.append(looked.wait())
            self._watching[new] = asyncio.create_task(self._watch(new, looked))
        await asyncio.gather(*seen)

    async def _endpoints(self) -> list[Endpoint]:
        try:
            # In an order of their own: of more than an edge would read, it is always the same ones that are left out.
            endpoints = sorted(await self._targets.endpoints(), key=lambda each: each.address)
        except NotServing:
            endpoints = []
        problems = self._targets.problems
        if len(endpoints) > MAX_REPLICAS:
            problems += (f"of {len(endpoints)} replicas only {MAX_REPLICAS} are used",)
        for problem in set(problems) - set(self._problems):
            _log.warning("a name cannot be followed", extra={"problem": problem})
        self._problems = problems
        return endpoints[:MAX_REPLICAS]

    async def _watch(self, endpoint: Endpoint, looked: asyncio.Event) -> None:
        eye = _Eye(endpoint, self._credentials, self._timings.poll_timeout_seconds)
        try:
            while True:
                try:
                    await self._look(eye)
                except Exception:  # as above: a watch that ends leaves a replica as it was seen last, for ever
                    _log.exception("noting a look failed", extra={"replica": eye.address})
                looked.set()
                await asyncio.sleep(self._timings.poll_seconds)
        finally:
            looked.set()
            await eye.close()

    async def _look(self, eye: _Eye) -> None:
        before = self._fleet.states[eye.address]
        try:
            seen = await eye.look()
        except EcdiffError as error:
            self._lost(eye.address, str(error))
        except Exception as error:  # grpc.aio has many; whichever it is, the replica was not seen to serve
            self._lost(eye.address, f"it cannot be looked at: {type(error).__name__}: {error}", error)
            await eye.close()
        else:
            self._fleet.saw(eye.address, seen)
            if not before.is_up:
                _log.info("a replica is up", extra={"replica": eye.address, "model": seen.model.name})
        self._on_look(eye.address)

    def _lost(self, address: str, problem: str, unexpected: Exception | None = None) -> None:
        if problem != self._fleet.states[address].problem:
            facts = {"replica": address, "problem": problem}
            _log.warning("a replica is down", extra=facts, exc_info=unexpected)
        self._fleet.lost(address, problem)


class _Eye:
    """Looks at one replica, on one connection for as long as that is good."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials, timeout_seconds: float) -> None:
        self.address, self._name = endpoint.address, endpoint.name
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._channel: grpc.aio.Channel | None = None

    async def look(self) -> Description:
        """Return what the replica says of itself.

        Raises:
            EcdiffError: It does not serve, or not this; the text says why.
        """
        try:
            if self._channel is None:
                self._channel = self._credentials.channel(self.address, name=self._name)
            return await self._ask(self._channel)
        except grpc.aio.AioRpcError as error:
            # A channel that failed waits longer and longer before it tries again; a fresh one tries at once.
            await self.close()
            raise from_status(error.code(), error.details(), error.trailing_metadata()) from None
        except ValueError as error:
            raise NotServing(str(error)) from error
        except OSError as error:
            raise NotServing(f"its certificates cannot be read here: {error}") from error

    async def close(self) -> None:
        """Let go of the connection."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def _ask(self, channel: grpc.aio.Channel) -> Description:
        seconds = self._timeout_seconds
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await call_unary(check, health_pb2.HealthCheckRequest(), timeout_seconds=seconds)
        if answer.status != _SERVING:
            raise NotServing("it is loading or draining")
        describe = CloudDenoiserStub(channel).Describe
        metadata = self._credentials.metadata(self.address)
        described = await call_unary(describe, pb.DescribeRequest(), timeout_seconds=seconds, metadata=metadata)
        return decode_description(described)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
