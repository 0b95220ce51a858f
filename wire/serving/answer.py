"""How a method of a service ends: with what it returns, or with the status of its error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Never, Protocol, TypeVar

import grpc
import grpc.aio

from wire.errors import EcdiffError, to_status

_T = TypeVar("_T")


class Ending(Protocol):
    """How a call can end, whatever carries it; grpc.aio's context is one."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str], ...] = ()
    ) -> Never:
        """End the call with this status."""

    def cancelled(self) -> bool:
        """Whether the other end gave it up."""


async def answer(context: Ending, log: logging.Logger, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns, or end the call with the status of its error."""
    try:
        return await work
    except EcdiffError as error:
        code, details, metadata = to_status(error)
    except Exception as error:
        # A write to a client that is gone raises InternalError, often before its cancellation is known here.
        if isinstance(error, grpc.aio.InternalError) or context.cancelled():
            raise asyncio.CancelledError from None
        log.exception("a call failed")
        code, details, metadata = to_status(EcdiffError("internal error of the service; its log says more"))
    await context.abort(code, details, metadata)
