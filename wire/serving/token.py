"""The bearer tokens, checked on every call but health checks."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from wire.errors import Unauthenticated, to_status
from wire.tokens import TokenFile

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_HEALTH_PREFIX = "/grpc.health.v1.Health/"


def check_token(tokens: TokenFile, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Let a call with `authorization: Bearer TOKEN` in its metadata pass, for any token of the file.

    Raises:
        Unauthenticated: It has another, or none.
    """
    given = next((value for key, value in metadata if key == "authorization"), "")
    given_bytes = given.encode() if isinstance(given, str) else given
    # A list: any() of a generator would tell by its time which of them was given.
    if not any([hmac.compare_digest(given_bytes, f"Bearer {token}".encode()) for token in tokens.accepted()]):
        raise Unauthenticated("wrong token" if given else "this service wants a token: say --auth-token-file")


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN`.

    Args:
        tokens: Each of them is good; all are compared, each in constant time.
        on_refused: Called with the error of each refused call.
    """

    def __init__(self, tokens: TokenFile, *, on_refused: Callable[[Unauthenticated], None]) -> None:
        self._tokens = tokens
        self._on_refused = on_refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the method's own handler, or one of the same kind that refuses."""
        handler = await continuation(handler_call_details)
        if handler_call_details.method.startswith(_HEALTH_PREFIX):
            return handler
        try:
            check_token(self._tokens, handler_call_details.invocation_metadata or ())
        except Unauthenticated as error:
            self._on_refused(error)
            return _refusing(handler, error)
        return handler


def _refusing(handler: _Handler | None, error: Unauthenticated) -> _Handler:
    code, details, metadata = to_status(error)

    async def refuse(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(code, details, metadata)

    if handler is not None and handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
