"""The service's three methods: parse, call, encode. Errors become statuses here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import grpc.aio

from cloud_service.conversation import Context, Conversation, Service
from cloud_service.logs import LOGGER_NAME
from diffusion.predictors import PREDICTORS
from diffusion.schedulers import SCHEDULERS
from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc
from wire.codecs import CODECS
from wire.convert import encode_description
from wire.errors import EcdiffError, LimitExceeded, to_status
from wire.messages import Description, Load, ModelDescription

_log = logging.getLogger(LOGGER_NAME)
_T = TypeVar("_T")
_MAX_PADDING_BYTES = 2**20


class CloudDenoiser(ecdiff_v1_pb2_grpc.CloudDenoiserServicer):
    """The gRPC methods.

    Args:
        service: What every call shares.
        version: Of this package.
    """

    def __init__(self, service: Service, *, version: str) -> None:
        self._service = service
        self._version = version

    # The generated stub knows generators only; a coroutine that writes is told of a cancellation at once.
    async def Denoise(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ClientMessage], context: Context
    ) -> None:
        """Hold one generation's conversation."""
        await _answer(context, Conversation(self._service, request_iterator, context).run())

    async def Describe(
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DescribeResponse:
        """Say what is served and how busy it is."""
        return await _answer(context, self._describe())

    async def Probe(self, request: pb.ProbeRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.ProbeResponse:
        """Answer with time stamps, and as much padding as was asked for."""
        return await _answer(context, self._probe(request, received_at=time.time()))

    async def _describe(self) -> pb.DescribeResponse:
        service = self._service
        return encode_description(
            Description(
                model=ModelDescription(**vars(service.ready().model.info)),
                limits=service.limits,
                load=Load(
                    sessions=service.registry.num_running,
                    queue=service.engine.queue_length,
                    step_seconds=service.engine.step_seconds,
                ),
                schedulers=tuple(SCHEDULERS),
                predictors=tuple(PREDICTORS),
                codecs=tuple(CODECS),
                version=self._version,
            )
        )

    async def _probe(self, request: pb.ProbeRequest, received_at: float) -> pb.ProbeResponse:
        if max(request.response_padding, len(request.padding)) > _MAX_PADDING_BYTES:
            raise LimitExceeded(f"a probe carries at most {_MAX_PADDING_BYTES} bytes of padding each way")
        padding = bytes(request.response_padding)
        return pb.ProbeResponse(t0=request.t0, t1=received_at, t2=time.time(), padding=padding)


async def _answer(context: grpc.aio.ServicerContext[Any, Any], work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns, or end the call with the status of its error."""
    try:
        return await work
    except EcdiffError as error:
        code, details, metadata = to_status(error)
    except Exception as error:
        # A write to a client that is gone raises InternalError, often before its cancellation is known here.
        if isinstance(error, grpc.aio.InternalError) or context.cancelled():
            raise asyncio.CancelledError from None
        _log.exception("a call failed")
        code, details, metadata = to_status(EcdiffError("internal error of the cloud service; its log says more"))
    await context.abort(code, details, metadata)
    raise AssertionError("abort always raises")
