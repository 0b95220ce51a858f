"""What an emulated network does to bytes: when they arrive, in which order, how many are under way.

Nothing comes early is checked to the microsecond; that nothing comes late only as far as a busy machine allows.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from itertools import pairwise

import pytest
from network_ends import network, receive, receive_exactly, receive_hash, round_trip_seconds, send

from bench.network import LINKS, Link

LATENCY_SECONDS = 0.05
SLOW = Link(latency_ms=50)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_latency_is_added_once_each_way() -> None:
    async with network(SLOW) as net:
        ends = await net.connect()
        seconds = [await round_trip_seconds(ends) for _ in range(5)]
    assert min(seconds) >= 2 * LATENCY_SECONDS
    assert min(seconds) < 3 * LATENCY_SECONDS


async def test_many_reads_cost_one_latency() -> None:
    num_bytes = 20 * SLOW.read_bytes
    async with network(SLOW) as net:
        seconds = await round_trip_seconds(await net.connect(), num_bytes)
    assert 2 * LATENCY_SECONDS <= seconds < 20 * LATENCY_SECONDS


async def test_new_connection_costs_a_round_trip_of_its_own() -> None:
    async with network(SLOW) as net:
        begin = now()
        near = await net.dial()
        await send(near, b"?")
        assert await receive(await net.answer()) == b"?"
        assert now() - begin >= 3 * LATENCY_SECONDS


async def test_pipelining_survives_the_latency() -> None:
    message = struct.Struct("d")
    async with network(SLOW) as net:
        ends = await net.connect()

        async def send_all() -> None:
            for _ in range(100):
                await send(ends.near, message.pack(now()))
                await asyncio.sleep(0.001)

        begin = now()
        sending = asyncio.create_task(send_all())
        for _ in range(100):
            (sent_at,) = message.unpack(await receive_exactly(ends.far, message.size))
            assert now() - sent_at >= LATENCY_SECONDS
        # One after the other they would take 5 s.
        assert now() - begin < 2.5
        await sending


async def test_bytes_take_their_time_on_a_narrow_link() -> None:
    async with network(Link(latency_ms=50, bandwidth_mbit_s=8)) as net:
        ends = await net.connect()
        begin = now()
        sending = asyncio.create_task(send(ends.near, bytes(300_000)))
        await receive_exactly(ends.far, 300_000)
        seconds = now() - begin
        await sending
    assert 0.3 + LATENCY_SECONDS <= seconds < 3


async def test_connections_share_the_bandwidth_fairly() -> None:
    async with network(Link(bandwidth_mbit_s=8)) as net:
        pairs = [await net.connect() for _ in range(2)]
        begin = now()
        sending = [asyncio.create_task(send(ends.near, bytes(200_000))) for ends in pairs]

        async def seconds(far: socket.socket) -> float:
            await receive_exactly(far, 200_000)
            return now() - begin

        first, second = sorted(await asyncio.gather(*(seconds(ends.far) for ends in pairs)))
        await asyncio.gather(*sending)
    assert second >= 0.4
    # Alone it would have taken 0.2 s; the second may begin later by what a busy machine takes.
    assert first >= 0.25


async def test_the_two_directions_have_a_bandwidth_each() -> None:
    async with network(Link(bandwidth_mbit_s=8)) as net:
        ends = await net.connect()
        sending = [asyncio.create_task(send(end, bytes(50_000))) for end in ends]
        await asyncio.gather(*(receive_exactly(end, 50_000) for end in ends))
        await asyncio.gather(*sending)
    assert net.emulated.up.num_bytes == net.emulated.down.num_bytes == 50_000


async def test_jitter_makes_latencies_differ_and_shortens_none() -> None:
    async with network(Link(latency_ms=10, jitter_ms=40)) as net:
        ends = await net.connect()
        seconds = [await round_trip_seconds(ends) for _ in range(10)]
    assert min(seconds) >= 0.02
    assert max(seconds) - min(seconds) > 0.01


@pytest.mark.parametrize(
    "link",
    [
        Link(latency_ms=2, jitter_ms=10),
        Link(slice_bytes=3000),
        Link(latency_ms=2, jitter_ms=10, bandwidth_mbit_s=20, slice_bytes=3000),
    ],
    ids=["jitter", "slices", "both on a narrow link"],
)
async def test_order_and_bytes_are_kept(link: Link) -> None:
    source = random.Random(1)
    data = source.randbytes(200_000)
    async with network(link) as net:
        ends = await net.connect()

        async def send_in_uneven_parts(end: socket.socket) -> None:
            begin = 0
            while begin < len(data):
                size = source.randint(1, 20_000)
                await send(end, data[begin : begin + size])
                begin += size
                await asyncio.sleep(source.choice((0, 0, 0.002)))
            end.shutdown(socket.SHUT_WR)

        sending = [asyncio.create_task(send_in_uneven_parts(end)) for end in ends]
        assert await asyncio.gather(*map(receive_hash, ends)) == [hashlib.sha256(data).hexdigest()] * 2
        await asyncio.gather(*sending)


async def test_slices_arrive_apart() -> None:
    async with network(Link(slice_bytes=500)) as net:
        ends = await net.connect()
        await send(ends.near, bytes(20_000))
        sizes = []
        while sum(sizes) < 20_000:
            sizes.append(len(await receive(ends.far)))
    # Some 80 on an idle machine.
    assert len(sizes) >= 8


async def test_half_close_is_passed_on_behind_the_bytes() -> None:
    async with network(Link(latency_ms=20, bandwidth_mbit_s=20)) as net:
        near, far = await net.connect()
        await send(near, b"the question")
        near.shutdown(socket.SHUT_WR)
        assert await receive_exactly(far, 12) == b"the question"
        assert await receive(far) == b""
        await send(far, b"the answer")
        far.close()
        assert await receive_exactly(near, 10) == b"the answer"
        assert await receive(near) == b""


async def test_narrow_link_holds_the_sender_back() -> None:
    link = Link(bandwidth_mbit_s=1, queue_ms=100)
    async with network(link) as net:
        ends = await net.connect()
        begin = now()
        sending = asyncio.create_task(send(ends.near, bytes(10_000_000)))
        await receive_exactly(ends.far, 40_000)
        taken = net.emulated.up.num_bytes
        # What the wire has carried, what may queue for it, and the read that waits for room.
        assert taken <= 125_000 * (now() - begin + 0.1) + 2 * link.read_bytes
        sending.cancel()


async def test_reader_that_stalls_fills_no_memory_and_costs_the_others_nothing() -> None:
    link = Link(latency_ms=10, bandwidth_mbit_s=200, queue_ms=20)
    num_bytes = 10_000_000
    async with network(link, far_buffer_bytes=16 * 1024) as net:
        stalled, other = await net.connect(), await net.connect()
        sending = asyncio.create_task(send(stalled.near, bytes(num_bytes)))
        taken = -1
        while taken < net.emulated.up.num_bytes:
            taken = net.emulated.up.num_bytes
            await asyncio.sleep(0.3)
        # The window, the read on top of it, and the buffers of the two sockets behind it.
        assert link.window_bytes <= taken < link.window_bytes + link.read_bytes + 300_000
        assert await round_trip_seconds(other) < 2
        assert not sending.done()
        assert len(await receive_exactly(stalled.far, num_bytes)) == num_bytes
        await sending


async def test_bytes_arrive_in_the_order_of_their_times() -> None:
    async with network(Link(latency_ms=5, jitter_ms=30)) as net:
        ends = await net.connect()

        async def count_up() -> None:
            for number in range(100):
                await send(ends.near, bytes([number]))
                await asyncio.sleep(0.001)

        counting = asyncio.create_task(count_up())
        received = await receive_exactly(ends.far, 100)
        await counting
    assert all(later == earlier + 1 for earlier, later in pairwise(received))


def test_published_links_are_those_of_the_tables() -> None:
    assert {name: str(link) for name, link in LINKS.items()} == {
        "loopback": "0 ms round trip, no limit",
        "fibre": "5 ms round trip, 1000 Mbit/s each way",
        "dsl": "40 ms round trip, 20 Mbit/s each way",
        "mobile": "150 ms round trip, 5 Mbit/s each way",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_ms", -1.0),
        ("jitter_ms", float("nan")),
        ("queue_ms", float("inf")),
        ("bandwidth_mbit_s", 0.0),
        ("slice_bytes", 0),
    ],
)
def test_impossible_link_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Link(**{field: value})
