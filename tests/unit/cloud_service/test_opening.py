"""What streams may take before they are let in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from cloud_service.opening import Opening, OpeningMemory
from wire.errors import Busy, DeadlineExceeded, ProtocolError
from wire.messages import Limits

LIMITS = Limits(max_tensor_bytes=1000)


def test_one_client_holds_two_of_the_largest_opens_at_a_time_and_all_of_them_eight() -> None:
    memory = OpeningMemory(LIMITS)
    memory.take("greedy", 1200)
    memory.take("greedy", 800)
    with pytest.raises(Busy, match="this client"):
        memory.take("greedy", 1)
    for client in "abc":
        memory.take(client, 2000)
    with pytest.raises(Busy, match="too many large sessions"):
        memory.take("d", 1)


def test_what_is_given_back_may_be_held_again() -> None:
    memory = OpeningMemory(LIMITS)
    for _ in range(100):
        memory.take("one", 2000)
        memory.give_back("one", 2000)
    assert not memory._held_bytes


async def test_pauses_of_the_service_do_not_count_and_waiting_for_the_client_does() -> None:
    memory = OpeningMemory(LIMITS)

    def messages(opening: Opening, *, pause_seconds: float, wait_seconds: float) -> AsyncIterator[str]:
        async def pieces() -> AsyncIterator[str]:
            for _ in range(4):
                await asyncio.sleep(wait_seconds)
                opening.take(10, pause_seconds)
                await asyncio.sleep(pause_seconds)
            yield "whole"

        return pieces()

    patient = Opening(memory, "one", 0.2)
    started = time.monotonic()
    assert await patient.first_of(messages(patient, pause_seconds=0.1, wait_seconds=0.0)) == "whole"
    assert time.monotonic() - started > 0.35
    slow = Opening(memory, "one", 0.2)
    with pytest.raises(DeadlineExceeded, match="no Open came"):
        await slow.first_of(messages(slow, pause_seconds=0.1, wait_seconds=0.08))
    for opening in (patient, slow):
        opening.end()
    assert not memory._held_bytes


async def test_a_stream_that_ends_before_its_open_breaks_the_protocol() -> None:
    async def nothing() -> AsyncIterator[str]:
        return
        yield

    with pytest.raises(ProtocolError, match="ended before Open"):
        await Opening(OpeningMemory(LIMITS), "one", 1.0).first_of(nothing())
