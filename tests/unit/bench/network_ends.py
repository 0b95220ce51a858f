"""Both ends of connections through an emulated network, as bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

from bench.network import EmulatedNetwork, Link

# Where something has to happen at all; a busy machine takes its time.
PATIENCE_SECONDS = 30.0


class Ends(NamedTuple):
    """One connection."""

    near: socket.socket
    far: socket.socket


class Network:
    """A running network with a listener behind it."""

    def __init__(self, emulated: EmulatedNetwork, listener: socket.socket, sockets: contextlib.ExitStack) -> None:
        self.emulated = emulated
        self._listener = listener
        self._sockets = sockets

    async def dial(self) -> socket.socket:
        """Return the near end of a new connection; its far end may be long in coming."""
        near = self._sockets.enter_context(socket.socket())
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = self.emulated.address.split(":")
        await asyncio.get_running_loop().sock_connect(near, (host, int(port)))
        return near

    async def answer(self) -> socket.socket:
        """Return the far end of the next connection."""
        far, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return self._sockets.enter_context(far)

    async def connect(self) -> Ends:
        """Return both ends of a new connection."""
        return Ends(await self.dial(), await self.answer())


@contextlib.asynccontextmanager
async def network(link: Link, *, far_buffer_bytes: int = 0) -> AsyncIterator[Network]:
    """Run a network with this link; 0 leaves the size of the far ends' receive buffers to the system."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        if far_buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, far_buffer_bytes)
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        async with asyncio.timeout(PATIENCE_SECONDS), EmulatedNetwork(target, link) as emulated:
            yield Network(emulated, listener, sockets)


async def send(end: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(end, data)


async def receive(end: socket.socket, num_bytes: int = 65536) -> bytes:
    """Return what one read gives."""
    return await asyncio.get_running_loop().sock_recv(end, num_bytes)


async def receive_exactly(end: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        piece = await receive(end, num_bytes - len(received))
        assert piece, f"the connection ended after {len(received)} of {num_bytes} bytes"
        received += piece
    return bytes(received)


async def receive_hash(end: socket.socket) -> str:
    """Return the SHA-256 of everything up to the end."""
    digest = hashlib.sha256()
    while piece := await receive(end):
        digest.update(piece)
    return digest.hexdigest()


async def round_trip_seconds(ends: Ends, num_bytes: int = 1) -> float:
    """Return how long bytes take to the far end and back."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    there = asyncio.create_task(send(ends.near, bytes(num_bytes)))
    back = asyncio.create_task(send(ends.far, await receive_exactly(ends.far, num_bytes)))
    await receive_exactly(ends.near, num_bytes)
    await asyncio.gather(there, back)
    return clock() - begin
