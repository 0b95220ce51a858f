"""What a stream may take before it is let in: the time of its wait, and memory for an Open that is on its way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import TypeVar

from wire.errors import Busy, DeadlineExceeded, ProtocolError
from wire.messages import Limits

_T = TypeVar("_T")

# In largest messages. One client may open two sessions at a time with as much as is allowed, all of them eight.
_LARGEST_OPENS_OF_A_CLIENT = 2
_LARGEST_OPENS = 8


class OpeningMemory:
    """The bytes that streams hold of Opens which are on their way or being checked: of each client, and of all.

    Args:
        limits: What one message may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_bytes = _LARGEST_OPENS * limits.max_tensor_bytes
        self._max_client_bytes = _LARGEST_OPENS_OF_A_CLIENT * limits.max_tensor_bytes
        self._held_bytes: Counter[str] = Counter()

    def take(self, client: str, num_bytes: int) -> None:
        """Hold so many more.

        Raises:
            Busy: Together with what is held that is too much; these are not held.
        """
        if self._held_bytes[client] + num_bytes > self._max_client_bytes:
            raise Busy("this client opens too many large sessions at a time")
        if self._held_bytes.total() + num_bytes > self._max_bytes:
            raise Busy("too many large sessions are being opened")
        self._held_bytes[client] += num_bytes

    def give_back(self, client: str, num_bytes: int) -> None:
        """Hold so many less."""
        self._held_bytes[client] -= num_bytes
        if not self._held_bytes[client]:
            del self._held_bytes[client]


class Opening:
    """One stream's wait to be let in.

    Args:
        memory: What all streams share.
        client: Whose stream it is.
        max_seconds: For its Open to come whole; how long the service itself left off reading does not count.
    """

    def __init__(self, memory: OpeningMemory, client: str, max_seconds: float) -> None:
        self._memory = memory
        self._client = client
        self._max_seconds = max_seconds
        self._held_bytes = 0
        self._timeout: asyncio.Timeout

    async def first_of(self, messages: AsyncIterator[_T]) -> _T:
        """Return the first message; `take` is called for each of its pieces.

        Raises:
            DeadlineExceeded: It took too long.
            ProtocolError: There is none.
        """
        try:
            async with asyncio.timeout(self._max_seconds) as self._timeout:
                return await anext(messages)
        except TimeoutError:
            raise DeadlineExceeded(f"no Open came within {self._max_seconds:g} s") from None
        except StopAsyncIteration:
            raise ProtocolError("the stream ended before Open") from None

    def take(self, num_bytes: int, pause_seconds: float) -> None:
        """Hold a piece that came, and allow for the pause before the next one is read.

        Raises:
            Busy: There is no memory for it.
        """
        self._memory.take(self._client, num_bytes)
        self._held_bytes += num_bytes
        ends_at = self._timeout.when()
        assert ends_at is not None, "it was made with a delay"
        self._timeout.reschedule(ends_at + pause_seconds)

    def end(self) -> None:
        """Give back what is held: the stream was let in, or is refused."""
        self._memory.give_back(self._client, self._held_bytes)
        self._held_bytes = 0
