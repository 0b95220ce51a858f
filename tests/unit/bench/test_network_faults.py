"""Faults of an emulated network: silence, cuts, ends that break."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest
from network_ends import PATIENCE_SECONDS, Ends, network, receive, receive_exactly, round_trip_seconds, send

from bench.network import EmulatedNetwork, Link

RESET = struct.pack("ii", 1, 0)
SILENCE_SECONDS = 0.2


async def nothing_comes(end: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(receive(end), SILENCE_SECONDS)


async def send_for_ever(end: socket.socket) -> None:
    while True:
        await send(end, bytes(1000))
        await asyncio.sleep(0.01)


async def test_blackhole_stops_bytes_without_closing_and_loses_none() -> None:
    async with network(Link(latency_ms=20)) as net:
        near, far = await net.connect()
        await send(near, b"under way ")
        net.emulated.blackhole()
        await send(near, b"and after ")
        await send(far, b"the other way")
        await nothing_comes(far)
        await nothing_comes(near)
        net.emulated.restore()
        await send(near, b"and now")
        assert await receive_exactly(far, 27) == b"under way and after and now"
        assert await receive_exactly(near, 13) == b"the other way"


async def test_blackhole_swallows_ends_and_resets_too() -> None:
    async with network(Link()) as net:
        closing, breaking = await net.connect(), await net.connect()
        net.emulated.blackhole()
        closing.near.close()
        breaking.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        breaking.near.close()
        await nothing_comes(closing.far)
        await nothing_comes(breaking.far)
        net.emulated.restore()
        assert await receive(closing.far) == b""
        with pytest.raises(ConnectionResetError):
            await receive(breaking.far)


async def test_blackhole_leaves_new_connections_unanswered() -> None:
    async with network(Link()) as net:
        net.emulated.blackhole()
        near = await net.dial()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(net.answer(), SILENCE_SECONDS)
        net.emulated.restore()
        await round_trip_seconds(Ends(near, await net.answer()))


async def test_blackhole_holds_senders_back_in_the_end() -> None:
    link = Link(bandwidth_mbit_s=100, queue_ms=10)
    async with network(link) as net:
        near, far = await net.connect()
        net.emulated.blackhole()
        sending = asyncio.create_task(send(near, bytes(10_000_000)))
        while net.emulated.up.num_bytes < link.window_bytes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(SILENCE_SECONDS)
        assert net.emulated.up.num_bytes <= link.window_bytes + link.read_bytes
        net.emulated.restore()
        await receive_exactly(far, 10_000_000)
        await sending


async def test_reset_reaches_both_ends_of_every_connection() -> None:
    async with network(Link(latency_ms=100)) as net:
        pairs = [await net.connect() for _ in range(3)]
        await send(pairs[0].near, b"lost on the way")
        net.emulated.reset()
        for end in (end for ends in pairs for end in ends):
            with pytest.raises(ConnectionResetError):
                await receive(end)


async def test_connections_are_taken_after_a_reset() -> None:
    async with network(Link()) as net:
        await net.connect()
        net.emulated.reset()
        await round_trip_seconds(await net.connect())


async def test_reset_of_one_end_reaches_the_other_behind_the_bytes_under_way() -> None:
    data = bytes(range(250)) * 200
    async with network(Link(latency_ms=50, bandwidth_mbit_s=8)) as net:
        near, far = await net.connect()
        await send(near, data)
        while net.emulated.up.num_bytes < len(data):
            await asyncio.sleep(0.001)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        near.close()
        assert await receive_exactly(far, len(data)) == data
        with pytest.raises(ConnectionResetError):
            await receive(far)


async def test_sender_to_an_end_that_is_gone_sees_a_reset() -> None:
    async with network(Link(latency_ms=5)) as net:
        near, far = await net.connect()
        far.close()
        assert await receive(near) == b""
        await send(near, b"anybody there?")
        # What Linux makes of a reset that comes after the end.
        with pytest.raises(BrokenPipeError):
            await send_for_ever(near)


async def test_connection_to_nobody_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port_of_nobody = listener.getsockname()[1]
    async with asyncio.timeout(PATIENCE_SECONDS), EmulatedNetwork(f"127.0.0.1:{port_of_nobody}", Link()) as network:
        reader, writer = await asyncio.open_connection(*network.address.split(":"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_connections_in_every_state_end_with_the_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as sockets:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        async with asyncio.timeout(PATIENCE_SECONDS), EmulatedNetwork(target, Link(latency_ms=50)) as network:
            host, port = network.address.split(":")
            ends = []
            for _ in range(3):  # carrying bytes; connected; not connected yet
                ends.append(sockets.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS)))
                ends[0].sendall(bytes(1000))
                await asyncio.sleep(0.15 if len(ends) < 3 else 0)
            network.blackhole()
        for end in ends:
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(1) == b""


async def test_listening_where_somebody_else_listens_is_an_error() -> None:
    async with network(Link()) as net:
        second = EmulatedNetwork("127.0.0.1:1", Link(), listen=net.emulated.address)
        with pytest.raises(OSError, match="in use"):
            await second.__aenter__()
