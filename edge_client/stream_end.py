"""What the status that ended a Denoise stream means."""

from __future__ import annotations

from typing import Any

import grpc

from wire.errors import Cancelled, EcdiffError, NotServing, ProtocolError, StreamBroke, from_status, names_error

Status = tuple[grpc.StatusCode, str | None, Any]

# What a proxy says of a stream whose other end it lost, and gRPC of a method that failed without a status.
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
# What grpc.aio itself says of a write that fails.
FAILED_WRITE = "Internal error from Core"


class StreamEnd:
    """The end of one call, whoever brought it about.

    Args:
        call: A `grpc.aio` call to which nothing has been written yet.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._clouds_own: Status | None = None
        call.add_done_callback(self._keep_status)

    async def error(self) -> EcdiffError:
        """Return what the status means; waits until the call has one."""
        code, details, metadata = self._clouds_own or await _status(self._call)
        if code is grpc.StatusCode.OK:
            return Cancelled("the cloud ended the session")
        if _is_failed_write(code, details):
            return NotServing("the connection to the cloud broke")
        told = from_status(code, details, metadata)
        if not names_error(metadata) and not isinstance(told, NotServing):
            # gRPC itself, or a proxy, on the way: no verdict of the cloud on our request.
            return (StreamBroke if code in _BROKEN else ProtocolError)(f"the stream broke: {told}")
        return told

    def _keep_status(self, call: Any) -> None:
        """Keep the cloud's own status.

        A write that fails because the cloud has just ended the stream makes grpc.aio put a status of its own over the
        cloud's (grpc issue 36066), sometimes before anybody could read it; but not before this callback.
        """
        waiting = _status(call)
        try:
            waiting.send(None)
        except StopIteration as known:  # it does not wait: in a done callback there is a status
            code, details, _ = known.value
            if not _is_failed_write(code, details):
                self._clouds_own = known.value
        else:
            waiting.close()


async def _status(call: Any) -> Status:
    return await call.code(), await call.details(), await call.trailing_metadata()


def _is_failed_write(code: grpc.StatusCode, details: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and details == FAILED_WRITE
