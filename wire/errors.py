"""The exception tree, and the one table that maps it to gRPC status codes and back.

    EcdiffError
    ├── InvalidRequest        a request that cannot be served as it stands   INVALID_ARGUMENT
    │   └── InvalidTensor     dtype, shape, size, codec, scaling             INVALID_ARGUMENT
    ├── CorruptTensor         does not decompress, checksum, not finite      DATA_LOSS
    ├── ProtocolError         a message that the conversation forbids here   FAILED_PRECONDITION
    │   └── StreamBroke       ended on the way, not by the other end         FAILED_PRECONDITION
    ├── VersionMismatch       the other end speaks another protocol version  FAILED_PRECONDITION
    ├── IncompatibleModels    family, latent channels or layout differ       FAILED_PRECONDITION
    ├── UnknownModel          no such model here                             NOT_FOUND
    ├── Unauthenticated       token missing or wrong                         UNAUTHENTICATED
    ├── LimitExceeded         above a published cap                          RESOURCE_EXHAUSTED
    ├── Busy                  no place now, try again later                  RESOURCE_EXHAUSTED
    ├── NotServing            loading, draining, gone, silent                UNAVAILABLE
    ├── DeadlineExceeded      the request's own deadline passed              DEADLINE_EXCEEDED
    ├── Cancelled             the other end gave up                          CANCELLED
    └── ModelError            the model failed: not finite, out of memory    INTERNAL

Two classes may share a status code, so the class travels by name in the trailing metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

import grpc

ERROR_KEY = "ecdiff-error"
RETRY_AFTER_KEY = "ecdiff-retry-after-ms"
_MILLISECONDS = re.compile("[0-9]{1,8}")
_MAX_TEXT_CHARS = 500


class EcdiffError(Exception):
    """Base of everything this project raises on purpose; the text is one line for the user."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidRequest(EcdiffError):
    """The request cannot be served as it stands."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class InvalidTensor(InvalidRequest):
    """A tensor's declared dtype, shape, size, codec or scaling is not what was agreed."""


class CorruptTensor(EcdiffError):
    """A tensor's bytes do not decode to what it declares, or hold NaN or infinity."""

    status = grpc.StatusCode.DATA_LOSS


class ProtocolError(EcdiffError):
    """A message that the conversation does not allow at this point."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class StreamBroke(ProtocolError):
    """Somebody on the way ended the stream, such as a proxy whose replica is gone; the other end said nothing."""


class VersionMismatch(EcdiffError):
    """The other end speaks another protocol version."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class IncompatibleModels(EcdiffError):
    """The two models cannot share latents."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class UnknownModel(EcdiffError):
    """No such model at this place."""

    status = grpc.StatusCode.NOT_FOUND


class Unauthenticated(EcdiffError):
    """The token is missing or wrong."""

    status = grpc.StatusCode.UNAUTHENTICATED


class LimitExceeded(EcdiffError):
    """The request is above a cap that the service publishes in Describe."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class Busy(EcdiffError):
    """The service is full for now.

    Args:
        message: What is full.
        retry_after_seconds: When to try again.
    """

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotServing(EcdiffError):
    """The service is loading, draining, gone or silent."""

    status = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(EcdiffError):
    """The deadline that the request carried has passed."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(EcdiffError):
    """The other end gave up the call."""

    status = grpc.StatusCode.CANCELLED


class ModelError(EcdiffError):
    """The model failed on this request: not finite, out of memory."""

    status = grpc.StatusCode.INTERNAL


_BY_NAME: dict[str, type[EcdiffError]] = {
    cls.__name__: cls
    for cls in (
        InvalidRequest,
        InvalidTensor,
        CorruptTensor,
        ProtocolError,
        StreamBroke,
        VersionMismatch,
        IncompatibleModels,
        UnknownModel,
        Unauthenticated,
        LimitExceeded,
        Busy,
        NotServing,
        DeadlineExceeded,
        Cancelled,
        ModelError,
    )
}
# For a status that carries no class name: it came from gRPC itself or from a proxy.
_BY_STATUS: dict[grpc.StatusCode, type[EcdiffError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DATA_LOSS: CorruptTensor,
    grpc.StatusCode.FAILED_PRECONDITION: ProtocolError,
    grpc.StatusCode.NOT_FOUND: UnknownModel,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.UNAVAILABLE: NotServing,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: ModelError,
    # A server that does not know the method is a server of something else.
    grpc.StatusCode.UNIMPLEMENTED: VersionMismatch,
}


def to_status(error: EcdiffError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Return status code, details and trailing metadata for `error`."""
    metadata: tuple[tuple[str, str], ...] = ((ERROR_KEY, type(error).__name__),)
    if isinstance(error, Busy):
        metadata += ((RETRY_AFTER_KEY, str(round(error.retry_after_seconds * 1000))),)
    return error.status, str(error), metadata


def from_status(
    code: grpc.StatusCode, details: str | None, trailing_metadata: Iterable[tuple[str, str | bytes]] | None
) -> EcdiffError:
    """Return the exception that `to_status` was given, as far as the status tells."""
    metadata = {key: str(value) for key, value in trailing_metadata or ()}
    cls = _BY_NAME.get(metadata.get(ERROR_KEY, ""), _BY_STATUS.get(code, EcdiffError))
    text = _one_line(details or "") or code.name.lower().replace("_", " ")
    if cls is Busy:
        milliseconds = metadata.get(RETRY_AFTER_KEY, "")
        # Remote text: what is no plain number of at most a day falls back to Busy's own second.
        return Busy(text, int(milliseconds) / 1000) if _MILLISECONDS.fullmatch(milliseconds) else Busy(text)
    return cls(text)


def names_error(trailing_metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
    """Whether a status comes from a service of ours; gRPC and proxies do not name a class."""
    return any(key == ERROR_KEY for key, _ in trailing_metadata or ())


def _one_line(details: str) -> str:
    """Return the first line of remote text as a terminal may show it: printable, and of bounded length."""
    first_line = next(iter(details.splitlines()), "")
    return "".join(char for char in first_line if char.isprintable())[:_MAX_TEXT_CHARS]
