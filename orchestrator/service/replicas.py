"""Watching the replicas: every few seconds each is asked for its health and its load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.service.config import LOGGER_NAME, Timings
from orchestrator.service.fleet import Fleet
from protos import ecdiff_v1_pb2 as pb
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.calls import call_unary
from wire.convert import decode_description
from wire.credentials import Credentials
from wire.errors import EcdiffError, NotServing, from_status
from wire.messages import Description

_log = logging.getLogger(LOGGER_NAME)
_SERVING = health_pb2.HealthCheckResponse.SERVING


class Watcher:
    """Asks every replica of a fleet again and again, each on its own.

    Args:
        fleet: Told what is seen.
        credentials: For the replicas.
        timings: How often, and how long to wait.
        on_look: Called with the address after each look.

    Raises:
        ValueError: The token would travel in the clear to another host.
        OSError: The token file cannot be read.
    """

    def __init__(
        self, fleet: Fleet, credentials: Credentials, timings: Timings, on_look: Callable[[str], object]
    ) -> None:
        self._fleet = fleet
        self._on_look = on_look
        self._poll_seconds = timings.poll_seconds
        self._eyes = [_Eye(address, credentials, timings.poll_timeout_seconds) for address in fleet.states]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look at every replica once, all at the same time; then go on in the background."""
        await asyncio.gather(*(self._look(eye) for eye in self._eyes))
        self._tasks = [asyncio.create_task(self._watch(eye)) for eye in self._eyes]

    async def stop(self) -> None:
        """Stop looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(eye.close() for eye in self._eyes))

    async def _watch(self, eye: _Eye) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._look(eye)

    async def _look(self, eye: _Eye) -> None:
        before = self._fleet.states[eye.address]
        try:
            seen = await eye.look()
        except EcdiffError as error:
            problem = str(error)
            self._fleet.lost(eye.address, problem)
            if problem != before.problem:
                _log.warning("a replica is down", extra={"replica": eye.address, "problem": problem})
        else:
            self._fleet.saw(eye.address, seen)
            if not before.is_up:
                _log.info("a replica is up", extra={"replica": eye.address, "model": seen.model.name})
        self._on_look(eye.address)


class _Eye:
    """Looks at one replica, on one connection for as long as that is good."""

    def __init__(self, address: str, credentials: Credentials, timeout_seconds: float) -> None:
        self.address = address
        self._credentials = credentials
        self._metadata = credentials.metadata(address)
        self._timeout_seconds = timeout_seconds
        self._channel: grpc.aio.Channel | None = None

    async def look(self) -> Description:
        """Return what the replica says of itself.

        Raises:
            EcdiffError: It does not serve, or not this; the text says why.
        """
        try:
            if self._channel is None:
                self._channel = self._credentials.channel(self.address)
            return await self._ask(self._channel)
        except grpc.aio.AioRpcError as error:
            # A channel that failed waits longer and longer before it tries again; a fresh one tries at once.
            await self.close()
            raise from_status(error.code(), error.details(), error.trailing_metadata()) from None
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
        described = await call_unary(describe, pb.DescribeRequest(), timeout_seconds=seconds, metadata=self._metadata)
        return decode_description(described)
