"""The bearer token, checked on every call but health checks."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from wire.errors import Unauthenticated, to_status

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_HEALTH_PREFIX = "/grpc.health.v1.Health/"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN`.

    Args:
        token: The secret; compared in constant time.
        on_refused: Called with the error of each refused call.
    """

    def __init__(self, token: str, *, on_refused: Callable[[Unauthenticated], None]) -> None:
        self._expected = f"Bearer {token}".encode()
        self._on_refused = on_refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the method's own handler, or one of the same kind that refuses."""
        handler = await continuation(handler_call_details)
        given = next(
            (value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"), ""
        )
        given_bytes = given.encode() if isinstance(given, str) else given
        if handler_call_details.method.startswith(_HEALTH_PREFIX) or hmac.compare_digest(given_bytes, self._expected):
            return handler
        error = Unauthenticated("wrong token" if given else "this service wants a token: say --auth-token-file")
        self._on_refused(error)
        return _refusing(handler, error)


def _refusing(handler: _Handler | None, error: Unauthenticated) -> _Handler:
    code, details, metadata = to_status(error)

    async def refuse(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(code, details, metadata)

    if handler is not None and handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
