"""Unary calls of a client."""

from __future__ import annotations

from typing import Any

from wire.errors import ProtocolError


async def call_unary(
    method: Any, request: Any, *, timeout_seconds: float, metadata: tuple[tuple[str, str], ...] = ()
) -> Any:
    """Make a call of a `grpc.aio` stub and return the answer.

    Raises:
        grpc.aio.AioRpcError: The status that the service, or gRPC, ended it with.
        ProtocolError: The answer is no message of its kind; `grpc.aio` returns None then.
    """
    answer = await method(request, timeout=timeout_seconds, metadata=metadata)
    if answer is None:
        raise ProtocolError("the answer is no message of this schema")
    return answer
