"""The service's three methods: parse, call, encode. Errors become statuses here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Protocol

from cloud_service.config import LOGGER_NAME
from cloud_service.conversation import Answers, Conversation
from cloud_service.service import Service
from diffusion.predictors import PREDICTORS
from diffusion.schedulers import known_schedulers, parse_scheduler_config
from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc
from wire.clock import stamp_seconds
from wire.codecs import CODECS
from wire.convert import encode_description
from wire.errors import LimitExceeded
from wire.messages import Description, Load, ModelDescription
from wire.serving.answer import Ending, answer

_log = logging.getLogger(LOGGER_NAME)
_MAX_PADDING_BYTES = 2**20


class StreamContext(Answers, Ending, Protocol):
    """What `Denoise` needs of its call."""


class CloudDenoiser(ecdiff_v1_pb2_grpc.CloudDenoiserServicer):
    """The gRPC methods, over grpc.aio or whatever else carries such calls.

    Args:
        service: What every call shares.
        version: Of this package.
    """

    def __init__(self, service: Service, *, version: str) -> None:
        self._service = service
        self._version = version

    # The generated stubs know one kind of context, and for streams generators only; a coroutine that writes is told of
    # a cancellation at once.
    async def Denoise(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ClientMessage], context: StreamContext
    ) -> None:
        """Hold one generation's conversation."""
        await answer(context, _log, Conversation(self._service, request_iterator, context).run())

    async def Describe(  # type: ignore[override]
        self, request: pb.DescribeRequest, context: Ending
    ) -> pb.DescribeResponse:
        """Say what is served and how busy it is."""
        return await answer(context, _log, self._describe())

    async def Probe(  # type: ignore[override]
        self, request: pb.ProbeRequest, context: Ending
    ) -> pb.ProbeResponse:
        """Answer with time stamps, and as much padding as was asked for."""
        return await answer(context, _log, self._probe(request, received_at=stamp_seconds()))

    async def _describe(self) -> pb.DescribeResponse:
        service = self._service
        info = service.ready().model.info
        return encode_description(
            Description(
                model=ModelDescription(**vars(info)),
                limits=service.limits,
                load=Load(
                    sessions=service.registry.num_running,
                    queue=service.engine.queue_length,
                    step_seconds=service.engine.step_seconds,
                ),
                schedulers=tuple(known_schedulers(info.scheduler_class, parse_scheduler_config(info.scheduler_config))),
                predictors=tuple(PREDICTORS),
                codecs=tuple(CODECS),
                version=self._version,
            )
        )

    async def _probe(self, request: pb.ProbeRequest, received_at: float) -> pb.ProbeResponse:
        if max(request.response_padding, len(request.padding)) > _MAX_PADDING_BYTES:
            raise LimitExceeded(f"a probe carries at most {_MAX_PADDING_BYTES} bytes of padding each way")
        padding = bytes(request.response_padding)
        return pb.ProbeResponse(t0=request.t0, t1=received_at, t2=stamp_seconds(), padding=padding)
