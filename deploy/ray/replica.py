"""One replica of the cloud service on Ray Serve: an actor with a device, its model and the sessions on it."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import prometheus_client
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from cloud_service.backend import Backend
from cloud_service.config import LOGGER_NAME, ServerConfig
from deploy.ray.call import Call, received
from diffusion.loading import load_model
from diffusion.model import Model
from protos import ecdiff_v1_pb2 as pb
from wire.errors import Unauthenticated, to_status
from wire.serving.logs import configure_logging
from wire.serving.token import check_token

_log = logging.getLogger(LOGGER_NAME)
_T = TypeVar("_T")
_STATUS = health_pb2.HealthCheckResponse


class Replica:
    """The gRPC methods under the names that Ray's proxy calls, and what the actor answers its own side.

    Args:
        config: What it serves, and how much; where it listens is the proxy's matter.
        log_level: From which level on its log goes to the standard error of its process.
    """

    async def __init__(self, config: ServerConfig, log_level: str) -> None:  # type: ignore[misc]  # Ray awaits it
        configure_logging(LOGGER_NAME, log_level)
        await self._start(config)
        # As in the plain service: no collection has to walk what never dies.
        gc.freeze()

    async def _start(self, config: ServerConfig) -> None:
        self._config = config
        self._draining = False
        self._backend = Backend(config, self._load)
        await self._backend.load()

    def _load(self) -> Model:
        """Load the model; called on the device thread."""
        config = self._config
        return load_model(config.model, device=config.device, dtype=config.dtype, loras=config.loras)

    # ------------------------------------------------------------------------------ what clients call

    async def Denoise(
        self, requests: gRPCInputStream[pb.ClientMessage], grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.ServerMessage, None]:
        """Hold one generation's conversation."""
        call = Call(grpc_context)
        work = self._let_in(call, lambda: self._backend.servicer.Denoise(received(requests), call))
        async with contextlib.aclosing(call.stream(work)) as messages:
            async for message in messages:
                yield message

    async def Describe(self, request: pb.DescribeRequest, grpc_context: RayServegRPCContext) -> pb.DescribeResponse:
        """Say what is served and how busy this replica is."""
        call = Call(grpc_context)
        work = self._let_in(call, lambda: self._backend.servicer.Describe(request, call))
        return await call.answer(work, pb.DescribeResponse())

    async def Probe(self, request: pb.ProbeRequest, grpc_context: RayServegRPCContext) -> pb.ProbeResponse:
        """Answer with this replica's time stamps."""
        call = Call(grpc_context)
        work = self._let_in(call, lambda: self._backend.servicer.Probe(request, call))
        return await call.answer(work, pb.ProbeResponse())

    async def Check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Answer `grpc.health.v1.Health/Check`, whatever service is asked for: SERVING or NOT_SERVING."""
        serving = not (self._draining or self._complaint())
        return health_pb2.HealthCheckResponse(status=_STATUS.SERVING if serving else _STATUS.NOT_SERVING)

    async def _let_in(self, call: Call, method: Callable[[], Awaitable[_T]]) -> _T:
        """Call the method, once the token is seen where one is wanted."""
        if self._config.tokens is not None:
            try:
                check_token(self._config.tokens, call.metadata())
            except Unauthenticated as error:
                self._backend.metrics.rejected(error)
                await call.abort(*to_status(error))
        return await method()

    # ------------------------------------------------------------------------------ what Ray and the operator ask

    async def check_health(self) -> None:
        """Pass; Ray replaces a replica that does not.

        Raises:
            RuntimeError: Its device thread died, or hangs.
        """
        if complaint := self._complaint():
            raise RuntimeError(complaint)

    def _complaint(self) -> str:
        if self._backend.died.is_set():
            return "the device thread died"
        return "the device hangs" if self._backend.hangs else ""

    async def drain(self) -> None:
        """Let nobody in any more; returns when the running sessions have finished, or the grace period is over."""
        self._draining = True
        _log.info("draining", extra={"sessions": self._backend.num_running})
        await self._backend.drain()

    async def exposition(self) -> tuple[str, str]:
        """Return this replica's id and its series as Prometheus reads them."""
        text = prometheus_client.generate_latest(self._backend.metrics.registry).decode()
        return serve.get_replica_context().replica_id.unique_id, text
