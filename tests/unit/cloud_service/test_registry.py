"""Who may park how much: a client that parks too many pays with its own."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_service.config import Timings
from cloud_service.metrics import Metrics
from cloud_service.outbox import Outbox
from cloud_service.registry import PARKED_PER_RUNNING, Registry
from cloud_service.session import Parked, Session
from wire.errors import Busy
from wire.messages import HandedOff, State

STATE = State(step_index=0, latents=np.zeros((1, 4, 2, 2), np.float32))


def registry_of(*, max_sessions: int, max_sessions_per_client: int) -> Registry:
    return Registry(
        max_sessions=max_sessions, max_sessions_per_client=max_sessions_per_client, max_batch=1, metrics=Metrics()
    )


def park(registry: Registry, client: str, *, last_heard: float) -> Session:
    """Let a session of `client` in and park it; `last_heard` orders the sessions by their silence."""
    session = Session(
        session_id=f"{client} {last_heard}",
        client=client,
        outbox=Outbox(credit=1, max_waiting_bytes=2**20),
        start_step=0,
        handoff_step=4,
        queue_position=lambda _session_id: 0,
        timings=Timings(),
    )
    registry.add(session, step_seconds=0.1)
    registry.deliver([(session.session_id, Parked(state=STATE, done=False, decided_at=0.0))])
    session.last_heard = last_heard
    return session


async def ending_of(session: Session) -> Exception | None:
    """Return why the session ends, None where it goes on."""
    messages = session.messages()
    assert isinstance(await anext(messages), HandedOff)
    if not session.ended:
        return None
    with pytest.raises(Busy) as caught:
        await anext(messages)
    return caught.value


async def test_a_client_that_parks_too_many_loses_its_own_longest_silent_one() -> None:
    registry = registry_of(max_sessions=4, max_sessions_per_client=1)
    neighbour = park(registry, "neighbour", last_heard=-10.0)  # silent for longer than any other
    greedy = [park(registry, "greedy", last_heard=float(number)) for number in range(PARKED_PER_RUNNING)]
    greedy[0].last_heard = 50.0
    assert not any(session.ended for session in greedy)
    newest = park(registry, "greedy", last_heard=60.0)
    assert [session.ended for session in (neighbour, *greedy, newest)] == [False, False, True, False, False, False]
    assert "of this client" in str(await ending_of(greedy[1]))
    assert await ending_of(neighbour) is None


async def test_each_one_that_is_too_many_ends_another_one_though_those_before_are_not_gone_yet() -> None:
    registry = registry_of(max_sessions=4, max_sessions_per_client=1)
    parked = [park(registry, "greedy", last_heard=float(number)) for number in range(PARKED_PER_RUNNING + 3)]
    assert [session.ended for session in parked] == [True] * 3 + [False] * PARKED_PER_RUNNING


async def test_of_all_clients_the_longest_silent_one_goes_where_none_parks_too_many() -> None:
    registry = registry_of(max_sessions=1, max_sessions_per_client=1)
    parked = [park(registry, f"client {number}", last_heard=float(number)) for number in range(PARKED_PER_RUNNING + 1)]
    assert [session.ended for session in parked] == [True] + [False] * PARKED_PER_RUNNING
