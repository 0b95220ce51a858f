"""One gRPC call as Ray Serve hands it to a replica, in the shape that the cloud's servicer knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from typing import Any, Never, TypeVar

import grpc
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from protos import ecdiff_v1_pb2 as pb
from wire.errors import StreamBroke

_T = TypeVar("_T")

# Ray Serve sends a status with the trailing metadata only beside a message. One that clients take at any time.
_LAST_WORD = pb.ServerMessage(heartbeat=pb.Heartbeat())


class _Aborted(Exception):
    """The status is set: the method says no more."""


async def received(requests: gRPCInputStream[pb.ClientMessage]) -> AsyncGenerator[pb.ClientMessage, None]:
    """Yield what the client sends.

    Raises:
        StreamBroke: The client gave up. Ray ends its messages as if it had no more, and does not always cancel the
            call: what it asked for would be computed to the end.
    """
    async for message in requests:
        yield message
    if requests.is_cancelled():
        raise StreamBroke("the client gave up the call")


class Call:
    """A call; the servicer writes and aborts, Ray takes what `answer` returns or `stream` yields.

    Args:
        context: Goes back to the proxy beside each message, with the status that is set on it.
    """

    def __init__(self, context: RayServegRPCContext) -> None:
        self._context = context
        self._message: pb.ServerMessage | None = None
        self._came = asyncio.Event()
        self._taken = asyncio.Event()

    # ------------------------------------------------------------------------------ the servicer's side

    def peer(self) -> str:
        """Return the address of who called the proxy, such as `ipv4:192.0.2.7:50321`."""
        peer: str = self._context.peer()
        return peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS proved of the peer: nothing, for the proxy speaks plaintext."""
        proven: Mapping[str, Iterable[bytes]] = self._context.auth_context()
        return proven

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """Return what the client sent beside its messages."""
        metadata: Iterable[tuple[str, str | bytes]] = self._context.invocation_metadata()
        return metadata

    def cancelled(self) -> bool:
        """Return False: Ray cancels the task of a call that the client gave up."""
        return False

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str], ...] = ()
    ) -> Never:
        """End the call with this status."""
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        raise _Aborted

    async def write(self, message: pb.ServerMessage, /) -> None:
        """Hand one message to `stream`; returns once Ray has taken it."""
        self._taken.clear()
        self._message = message
        self._came.set()
        await self._taken.wait()

    # ------------------------------------------------------------------------------ Ray's side

    async def answer(self, work: Coroutine[Any, Any, _T], otherwise: _T) -> _T:
        """Return what a method returns, or `otherwise` beside the status that ended it."""
        try:
            return await work
        except _Aborted:
            return otherwise

    async def stream(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[pb.ServerMessage, None]:
        """Yield what a method writes until it is done; it is cancelled where nobody takes any more."""
        working = asyncio.create_task(work)
        working.add_done_callback(lambda _: self._came.set())
        try:
            while True:
                await self._came.wait()
                self._came.clear()
                message, self._message = self._message, None
                if message is None:
                    break
                yield message
                self._taken.set()
            try:
                await working
            except _Aborted:
                yield _LAST_WORD
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
