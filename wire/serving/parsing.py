"""Bytes that are no message of their method's kind: refused as any other bad request, not as a bug of the service.

gRPC itself would answer UNKNOWN and write a traceback to the log, for whoever can open a connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from wire.errors import ProtocolError, to_status

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Parse: TypeAlias = Callable[[bytes], Any]
_Method: TypeAlias = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]


class ParsingInterceptor(grpc.aio.ServerInterceptor):
    """Reads requests for methods that are coroutines; what cannot be read is a ProtocolError.

    A call with one request ends with its status; one with a stream of them raises it where the method reads.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # gRPC's handlers are tuples, of which its types say nothing
        """Return the method's handler with its reading replaced."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        parse = _parsing(handler.request_deserializer)
        if handler.request_streaming:
            return handler._replace(request_deserializer=parse)
        if handler.response_streaming:
            return handler._replace(request_deserializer=None, unary_stream=_parsed(handler.unary_stream, parse))
        return handler._replace(request_deserializer=None, unary_unary=_parsed(handler.unary_unary, parse))


def _parsing(parse: _Parse) -> _Parse:
    def parse_or_refuse(serialized: bytes) -> Any:
        try:
            return parse(serialized)
        except DecodeError as error:
            raise ProtocolError(f"{len(serialized)} bytes that are no message of this schema") from error

    return parse_or_refuse


def _parsed(method: _Method, parse: _Parse) -> _Method:
    async def read_and_answer(serialized: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            request = parse(serialized)
        except ProtocolError as error:
            await context.abort(*to_status(error))
        return await method(request, context)

    return read_and_answer
