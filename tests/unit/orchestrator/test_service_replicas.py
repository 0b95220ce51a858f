"""Watching replicas that lie, hang and come back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from fleet_samples import description
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from harness.names import Names
from orchestrator.service.config import Timings
from orchestrator.service.estimates import ReplicaEstimates
from orchestrator.service.fleet import Fleet
from orchestrator.service.replicas import Watcher
from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc
from wire.convert import encode_description
from wire.credentials import Credentials

TIMINGS = Timings(poll_seconds=0.05, poll_timeout_seconds=0.5)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Replica(ecdiff_v1_pb2_grpc.CloudDenoiserServicer):
    """A cloud service as the watcher sees it; a test says what it answers."""

    def __init__(self) -> None:
        self.health = health.aio.HealthServicer()
        self.answer: Any = encode_description(description())
        self.hangs = False

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> Any:
        if self.hangs:
            await asyncio.sleep(60)
        return self.answer


def watch(
    fleet: Fleet,
    target: str,
    timings: Timings = TIMINGS,
    *,
    on_look: Callable[[str], object] = lambda address: None,
    on_gone: Callable[[str], object] = lambda address: None,
) -> Watcher:
    return Watcher(fleet, (target,), Credentials(), timings, on_look=on_look, on_gone=on_gone)


@contextlib.asynccontextmanager
async def watched(*, timings: Timings = TIMINGS) -> AsyncIterator[tuple[Replica, Fleet, str]]:
    """Run a replica and a watcher that has looked once."""
    replica = Replica()
    await replica.health.set("", SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(replica.health, server)
    ecdiff_v1_pb2_grpc.add_CloudDenoiserServicer_to_server(replica, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    fleet = Fleet()
    watcher = watch(fleet, address, timings)
    await watcher.start()
    try:
        yield replica, fleet, address
    finally:
        await watcher.stop()
        await server.stop(None)


async def becomes(fleet: Fleet, address: str, *, up: bool) -> str:
    """Wait until the replica is up or down; return why it is down."""
    async with asyncio.timeout(20):
        while fleet.states[address].is_up is not up:
            await asyncio.sleep(0.01)
    return fleet.states[address].problem


async def test_the_first_look_is_over_before_anything_is_served() -> None:
    async with watched(timings=Timings(poll_seconds=60)) as (_, fleet, address):
        assert fleet.states[address].is_up
        assert fleet.states[address].load == description().load


async def test_a_load_that_changes_is_seen() -> None:
    async with watched() as (replica, fleet, address):
        replica.answer = encode_description(description(sessions=3, queue=2))
        async with asyncio.timeout(20):
            while fleet.states[address].load.queue != 2:
                await asyncio.sleep(0.01)


async def test_one_that_drains_is_down_until_it_serves_again() -> None:
    async with watched() as (replica, fleet, address):
        await replica.health.set("", NOT_SERVING)
        assert await becomes(fleet, address, up=False) == "it is loading or draining"
        await replica.health.set("", SERVING)
        await becomes(fleet, address, up=True)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (pb.DescribeResponse(), "protocol version 0"),
        (pb.DescribeResponse(protocol_version=1), "nonsense"),
        (pb.DescribeResponse(protocol_version=99), "protocol version 99"),
    ],
)
async def test_one_that_answers_nonsense_is_down_and_watched_on(answer: pb.DescribeResponse, why: str) -> None:
    async with watched() as (replica, fleet, address):
        good, replica.answer = replica.answer, answer
        assert why in await becomes(fleet, address, up=False)
        replica.answer = good
        await becomes(fleet, address, up=True)


async def test_one_that_hangs_is_down_and_watched_on() -> None:
    async with watched() as (replica, fleet, address):
        replica.hangs = True
        await becomes(fleet, address, up=False)
        replica.hangs = False
        await becomes(fleet, address, up=True)


async def test_what_nobody_expects_is_a_loss_with_its_traceback_and_the_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> grpc.aio.Channel:
        raise grpc.aio.UsageError("Channel is closed.")

    async with watched() as (replica, fleet, address):
        monkeypatch.setattr(grpc.aio, "insecure_channel", fails)
        replica.hangs = True  # then it is asked on a new channel
        async with asyncio.timeout(20):
            while "it cannot be looked at: UsageError: Channel is closed" not in fleet.states[address].problem:
                await asyncio.sleep(0.01)
        assert not fleet.states[address].is_up
        monkeypatch.undo()
        replica.hangs = False
        await becomes(fleet, address, up=True)
    (told,) = [record for record in caplog.records if record.exc_info]
    assert "UsageError" in str(told.exc_info)


async def test_a_watch_goes_on_when_what_it_saw_cannot_be_noted(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def look(address: str) -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("no room for a series")

    watcher = watch(Fleet(), "127.0.0.1:9", on_look=look)
    await watcher.start()
    async with asyncio.timeout(20):
        while looks < 3:
            await asyncio.sleep(0.01)
    await watcher.stop()
    assert all("no room for a series" in str(record.exc_info) for record in caplog.records if record.exc_info)


async def test_names_are_followed_on_after_what_nobody_expects(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names(monkeypatch, clouds_test=["127.0.0.2", "127.0.0.3"])
    fleet = Fleet()

    def gone(address: str) -> None:
        raise RuntimeError("no such series")

    timings = Timings(poll_seconds=60, resolve_seconds=0.02)
    watcher = watch(fleet, "dns:///clouds.test:9", timings, on_gone=gone)
    await watcher.start()
    for left in (["127.0.0.3"], ["127.0.0.4"]):
        names.addresses["clouds.test"] = left
        async with asyncio.timeout(20):
            while set(fleet.states) != {f"{left[0]}:9"}:
                await asyncio.sleep(0.01)
    await watcher.stop()
    assert "following the names failed" in caplog.messages


async def test_estimates_outlive_a_name_that_has_no_answer_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, clouds_test=[])
    fleet = Fleet({"127.0.0.2:9": ReplicaEstimates("known", num_reports=3)})
    targets = ("127.0.0.1:9", "dns:///clouds.test:9")
    timings = Timings(poll_seconds=60, resolve_seconds=0.02)
    watcher = Watcher(
        fleet, targets, Credentials(), timings, on_look=lambda address: None, on_gone=lambda address: None
    )
    await watcher.start()
    assert set(fleet.estimates) == {"127.0.0.1:9"}
    names.addresses["clouds.test"] = ["127.0.0.2"]
    async with asyncio.timeout(20):
        while "127.0.0.2:9" not in fleet.estimates:
            await asyncio.sleep(0.01)
    await watcher.stop()
    assert fleet.estimates["127.0.0.2:9"].num_reports == 3


async def test_bytes_that_are_no_message_are_no_replica() -> None:
    class Junk(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            async def answer(request: Any, context: Any) -> bytes:
                return b"\xff\xff\xff"

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Junk(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    fleet = Fleet()
    watcher = watch(fleet, address)
    await watcher.start()
    assert "no message of this schema" in fleet.states[address].problem
    await watcher.stop()
    await server.stop(None)


async def test_a_replica_that_stays_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator")
    fleet = Fleet()
    looks = 0

    def look(address: str) -> None:
        nonlocal looks
        looks += 1

    watcher = watch(fleet, "127.0.0.1:9", on_look=look)
    await watcher.start()
    async with asyncio.timeout(20):
        while looks < 4:
            await asyncio.sleep(0.01)
    await watcher.stop()
    assert [record.message for record in caplog.records] == ["a replica is down"]
