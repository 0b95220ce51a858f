"""The cloud's answers to Correct that are still awaited."""

from __future__ import annotations

import asyncio

from wire.errors import ProtocolError
from wire.messages import Correction


class Answers:
    """One place for each correction that was asked for and not answered."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Correction | None]] = {}

    async def wait(self, step_index: int) -> Correction | None:
        """Return the answer for a step; None where none will come."""
        answer = self._waiting[step_index] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(answer)

    def take(self, message: Correction) -> None:
        """Give an answer to whoever waits for it; it may come when nobody does any more.

        Raises:
            ProtocolError: Nobody asked.
        """
        answer = self._waiting.pop(message.step_index, None)
        if answer is None:
            raise ProtocolError(f"the cloud corrects step {message.step_index}, for which nobody asked")
        if not answer.done():
            answer.set_result(message)

    def give_up(self) -> None:
        """No answer will come any more."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)

    @property
    def are_all_in(self) -> bool:
        """Whether no answer is under way."""
        return all(answer.done() for answer in self._waiting.values())
