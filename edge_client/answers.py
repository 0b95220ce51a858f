"""The cloud's answers to Correct and Decode that are still awaited."""

from __future__ import annotations

import asyncio

from wire.errors import ProtocolError
from wire.messages import Correction, Decoded

Answer = Correction | Decoded
DECODED = -1
"""Stands for a step index where it is the pixels that are waited for."""


class Answers:
    """One place for each answer that was asked for and did not come."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Answer | None]] = {}

    async def wait(self, step_index: int) -> Answer | None:
        """Return the answer for a step, or for `DECODED`; None where none will come."""
        answer = self._waiting[step_index] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(answer)

    def take(self, message: Answer) -> None:
        """Give an answer to whoever waits for it; it may come when nobody does any more.

        Raises:
            ProtocolError: Nobody asked.
        """
        step_index = message.step_index if isinstance(message, Correction) else DECODED
        answer = self._waiting.pop(step_index, None)
        if answer is None:
            what = f"corrects step {step_index}" if isinstance(message, Correction) else "sends pixels"
            raise ProtocolError(f"the cloud {what}, for which nobody asked")
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
