from __future__ import annotations

import asyncio
import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_service.config import Timings
from cloud_service.outbox import Outbox
from cloud_service.session import Parked, Session, Stepped
from wire.errors import DeadlineExceeded, ModelError
from wire.messages import HandedOff, Heartbeat, Pong, Source, State, Step, Totals

LATENTS = np.zeros((1, 4, 2, 2), np.float32)
PLENTY = 2**20


def step(index: int, *, prediction: bool = False) -> Step:
    return Step(step_index=index, source=Source.CLOUD, latents=LATENTS, prediction=LATENTS if prediction else None)


def handed_off(index: int) -> HandedOff:
    return HandedOff(state=State(step_index=index, latents=LATENTS), totals=Totals())


def parked(index: int, *, decided_at: float) -> Parked:
    return Parked(state=State(step_index=index, latents=LATENTS), done=False, decided_at=decided_at)


def outbox(credit: int, max_waiting_bytes: int = PLENTY) -> Outbox:
    return Outbox(credit=credit, max_waiting_bytes=max_waiting_bytes)


def drain(box: Outbox) -> list[tuple[int, bool]]:
    """Index and whether it carried latents, of every step that may be sent now."""
    sent = []
    while (message := box.pop()) is not None:
        if isinstance(message, Step):
            sent.append((message.step_index, message.latents is not None))
    return sent


def test_each_latents_costs_one_credit_and_the_newest_waits() -> None:
    box = outbox(2)
    sent = []
    for index in range(4):
        box.push(step(index))
        sent += drain(box)
    assert sent == [(0, True), (1, True), (2, False)]
    box.grant(1)
    assert drain(box) == [(3, True)]


def test_with_few_credits_the_newest_of_a_backlog_get_them() -> None:
    box = outbox(2)
    for index in range(5):
        box.push(step(index))
    assert drain(box) == [(0, False), (1, False), (2, False), (3, True), (4, True)]


def test_the_end_overtakes_waiting_tensors_and_no_header_is_lost() -> None:
    box = outbox(0)
    for index in range(3):
        box.push(step(index))
    box.push(handed_off(3))
    assert [type(box.pop()) for _ in range(4)] == [Step, Step, Step, HandedOff]
    assert box.pop() is None


def test_predictions_under_credit_are_not_lost_to_the_end() -> None:
    box = outbox(5)
    box.push(step(0, prediction=True))
    box.push(step(1))
    box.push(handed_off(2))
    assert drain(box) == [(0, True), (1, False)]


def test_waiting_tensors_stay_below_the_cap_whatever_the_credit() -> None:
    box = outbox(1000, max_waiting_bytes=3 * LATENTS.nbytes)
    for index in range(6):
        box.push(step(index))
    assert drain(box) == [(0, False), (1, False), (2, False), (3, True), (4, True), (5, True)]


def test_a_newer_pong_replaces_one_that_waits_and_goes_first() -> None:
    box = outbox(5)
    box.push(step(0))
    for t0 in (1.0, 2.0):
        box.push(Pong(t0=t0, t1=t0, t2=t0))
    pong = box.pop()
    assert isinstance(pong, Pong)
    assert pong.t0 == 2.0
    assert pong.t2 > pong.t1
    assert isinstance(box.pop(), Step)


@settings(deadline=None)
@given(
    actions=st.lists(st.sampled_from(["step", "pop", "grant"]), max_size=60),
    credit=st.integers(0, 3),
)
def test_every_header_arrives_once_in_order_and_credits_are_never_overdrawn(actions: list[str], credit: int) -> None:
    box = outbox(credit)
    sent: list[tuple[int, bool]] = []
    pushed, granted = 0, credit
    for action in actions:
        if action == "step":
            box.push(step(pushed))
            pushed += 1
        elif action == "grant":
            box.grant(1)
            granted += 1
        elif isinstance(message := box.pop(), Step):
            sent.append((message.step_index, message.latents is not None))
        assert sum(with_latents for _, with_latents in sent) <= granted
    box.push(handed_off(pushed))
    sent += drain(box)
    assert [index for index, _ in sent] == list(range(pushed))


# ------------------------------------------------------------------------------------ session


def new_session(**timings: float) -> Session:
    return Session(
        session_id="s",
        client="host 127.0.0.1",
        outbox=outbox(0),
        start_step=0,
        handoff_step=8,
        queue_position=lambda session_id: 3,
        timings=Timings(**timings),
    )


def stepped(step_index: int) -> Stepped:
    return Stepped(step=step(step_index), ended_at=time.monotonic())


async def test_silence_is_filled_with_heartbeats() -> None:
    one = new_session(heartbeat_seconds=0.01)
    messages = one.messages()
    assert await anext(messages) == Heartbeat(queue_position=3, step_index=0)
    one.deliver(stepped(0))
    one.deliver(stepped(1))
    assert dataclasses.replace(await anext(messages), wait_seconds=0.0) == Step(step_index=0, source=Source.CLOUD)
    assert await anext(messages) == Heartbeat(queue_position=3, step_index=2)


async def test_what_waits_is_sent_before_the_error() -> None:
    one = new_session()
    one.deliver(stepped(0))
    one.deliver(ModelError("no more"))
    messages = one.messages()
    assert dataclasses.replace(await anext(messages), wait_seconds=0.0) == Step(step_index=0, source=Source.CLOUD)
    with pytest.raises(ModelError, match="no more"):
        await anext(messages)


async def test_the_first_end_counts() -> None:
    one = new_session()
    one.finish()
    one.fail(ModelError("too late"))
    assert [message async for message in one.messages()] == []


async def test_a_handoff_tells_how_long_it_waited() -> None:
    one = new_session()
    asyncio.get_running_loop().call_later(0.02, one.deliver, parked(4, decided_at=one.last_heard))
    message = await anext(one.messages())
    assert isinstance(message, HandedOff)
    assert message.wait_seconds >= 0.02
    assert one.parked


async def test_a_step_tells_how_long_it_waited_since_it_was_made() -> None:
    one = new_session()
    made = stepped(0)
    # On its way from the device to the event loop, then for a credit.
    await asyncio.sleep(0.02)
    one.deliver(made)
    await asyncio.sleep(0.02)
    one.grant(1)
    message = await anext(one.messages())
    assert isinstance(message, Step)
    assert message.wait_seconds >= 0.04


def test_corrections_may_come_as_soon_as_the_plans_last_step_is_known() -> None:
    one = new_session()
    for index in range(8):
        assert not one.may_correct
        one.deliver(stepped(index))
    assert one.may_correct
    assert not one.parked


async def test_silence_of_a_running_session_is_no_reason_to_expire() -> None:
    one = new_session(heartbeat_seconds=0.01, parked_seconds=0.03)
    messages = one.messages()
    for _ in range(6):
        assert isinstance(await anext(messages), Heartbeat)
    one.deliver(parked(4, decided_at=0.0))
    assert isinstance(await anext(messages), HandedOff)
    with pytest.raises(DeadlineExceeded):
        assert [message async for message in messages] == "an endless list of heartbeats"
