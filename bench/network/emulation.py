"""The proxy: bytes are read, given the time at which they arrive, and written then.

Because every read has its own time, a long way keeps its pipelining, and a late timer delays only what it was set for.
Left out: loss, and TCP's slow start on the emulated way (both ends talk to a near neighbour, so their windows open at
once). A timer of the usual event loop comes up to 1 ms late, never early; the command's loop is finer.
"""

from __future__ import annotations

import asyncio
import functools
import random
import socket
import struct
from collections.abc import Awaitable, Callable

from bench.network.link import Link
from wire.serving.address import Address

# Of each of the proxy's sockets; Linux doubles it. Kept small: what waits in there is no part of the emulated queue.
_SOCKET_BUFFER_BYTES = 64 * 1024
# Slices this far apart are read apart; also the time by which a reset trails the last byte.
_GAP_SECONDS = 0.001
# l_onoff, l_linger: closing sends RST.
_RESET = struct.pack("ii", 1, 0)


class EmulatedNetwork:
    """`async with EmulatedNetwork(target, link) as network:`, then connect to `network.address` instead of `target`.

    A new connection costs a round trip before its first byte travels, as TCP's handshake does; where nobody listens at
    the target, it is reset. Leaving the block closes every connection.

    Args:
        target: HOST:PORT behind it; IPv4 or a name.
        link: What lies between.
        listen: HOST:PORT to listen on; port 0 lets the system choose one.

    Attributes:
        address: HOST:PORT that it listens on.
        up: The direction to the target.
        down: The direction back.

    Raises:
        ValueError: `target` or `listen` is no address.
        OSError: On entering: `listen` is taken, or not of this machine.
    """

    address: str

    def __init__(self, target: str, link: Link, *, listen: str = "127.0.0.1:0") -> None:
        self.target, self.link = Address.parse(target), link
        self.up, self.down = Wire(link), Wire(link)
        self._listen = Address.parse(listen)
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._passing = asyncio.Event()
        self._passing.set()
        # A bug in a connection ends the block, and at once.
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> EmulatedNetwork:
        self._listener = socket.create_server((self._listen.host, self._listen.port), backlog=1024)
        self._listener.setblocking(False)
        # Buffers have to be set before the handshake: it settles how far the window can open.
        _limit_buffers(self._listener)
        host, port = self._listener.getsockname()
        self.address = str(Address(host=host, port=port))
        await self._tasks.__aenter__()
        # Not a task in `sock_accept`: cancelled at the wrong moment, it would lose a connection and leave it open.
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in self._connections.values():
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def blackhole(self) -> None:
        """From now on nothing arrives, in either direction; connections stay open, and senders fill their buffers."""
        self._passing.clear()

    def restore(self) -> None:
        """End the blackhole: what was sent meanwhile arrives now, as TCP would send it again."""
        self._passing.set()

    def reset(self) -> None:
        """Cut every connection: both ends see a reset, what is under way is lost. New connections are taken."""
        for connection, task in self._connections.items():
            connection.reset_on_close()
            task.cancel()

    async def arrival(self, at: float) -> None:
        """Wait for the arrival of what is due at the loop time `at`, in seconds; a blackhole makes it later."""
        delay = at - _now()
        if delay > 0:
            await asyncio.sleep(delay)
        await self._passing.wait()

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except BlockingIOError:  # whoever knocked has left
            return
        connection = _Connection(self, near)
        self._connections[connection] = task = self._tasks.create_task(connection.run())
        task.add_done_callback(functools.partial(self._forget, connection))

    def _forget(self, connection: _Connection, _: asyncio.Task[None]) -> None:
        del self._connections[connection]
        connection.close()


class Wire:
    """One direction, shared by every connection.

    Attributes:
        num_bytes: Bytes taken from senders so far.
    """

    def __init__(self, link: Link) -> None:
        self.num_bytes = 0
        self._link = link
        self._free_at = 0.0
        self._turn = asyncio.Lock()
        self._jitter = random.Random(0)

    async def carry(self, num_bytes: int) -> float:
        """Wait until the queue has room, take the wire for `num_bytes`; return the loop time of their arrival."""
        leaves_at = came_at = _now()
        self.num_bytes += num_bytes
        if self._link.bytes_per_second is not None:
            async with self._turn:
                wait = self._free_at - self._link.queue_ms / 1000 - _now()
                if wait > 0:
                    await asyncio.sleep(wait)
                # Not from when the timer woke us: the wire loses no time to late timers.
                self._free_at = max(came_at, self._free_at) + num_bytes / self._link.bytes_per_second
                leaves_at = self._free_at
        return leaves_at + self._link.latency_seconds + self._jitter.uniform(0, self._link.jitter_ms) / 1000


class _Connection:
    """Two sockets, and a pipe each way between them."""

    def __init__(self, network: EmulatedNetwork, near: socket.socket) -> None:
        self._network = network
        self._near, self._far = near, socket.socket()
        _limit_buffers(self._far)
        for each in (self._near, self._far):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._broken = False

    async def run(self) -> None:
        """Carry bytes until both ends have closed, or one has broken."""
        network = self._network
        try:
            await network.arrival(_now() + 2 * network.link.latency_seconds)
            await asyncio.get_running_loop().sock_connect(self._far, (network.target.host, network.target.port))
            up = _Pipe(network, network.up, self._near, self._far)
            down = _Pipe(network, network.down, self._far, self._near)
            async with asyncio.TaskGroup() as tasks:
                for pipe, back in ((up, down), (down, up)):
                    # Word of a broken end goes to the other end, behind the bytes that are under way there.
                    tasks.create_task(self._until_broken(functools.partial(self._read, pipe), pipe))
                    tasks.create_task(self._until_broken(pipe.write, back))
        except* OSError:
            self.reset_on_close()

    def reset_on_close(self) -> None:
        """Let both ends see a reset when this is closed."""
        for each in (self._near, self._far):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def close(self) -> None:
        """Close both ends."""
        self._near.close()
        self._far.close()

    async def _read(self, pipe: _Pipe) -> None:
        await pipe.read()
        # A socket tells of its reset once: where the writer has heard it, the reader sees a mere end.
        if not self._broken:
            pipe.end()

    async def _until_broken(self, work: Callable[[], Awaitable[None]], toward: _Pipe) -> None:
        try:
            await work()
        except OSError:
            self._broken = True
            due = _now() + self._network.link.latency_seconds
            await self._network.arrival(max(due, toward.last_arrival) + _GAP_SECONDS)
            raise


class _Pipe:
    """One direction of one connection: what was read from `source` and is on its way to `sink`.

    Attributes:
        last_arrival: Loop time at which the newest bytes are due.
    """

    def __init__(self, network: EmulatedNetwork, wire: Wire, source: socket.socket, sink: socket.socket) -> None:
        self.last_arrival = 0.0
        self._network, self._link, self._wire = network, network.link, wire
        self._source, self._sink = source, sink
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._num_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._slices = random.Random(0)

    async def read(self) -> None:
        """Read `source` to its end, never further ahead of `write` than the window."""
        loop = asyncio.get_running_loop()
        while chunk := await loop.sock_recv(self._source, self._read_bytes()):
            self._send(chunk, await self._wire.carry(len(chunk)))
            self._num_bytes += len(chunk)
            if self._num_bytes >= self._link.window_bytes:
                self._has_room.clear()
            await self._has_room.wait()

    def end(self) -> None:
        """Close the sink after the bytes under way."""
        self._send(b"", _now() + self._link.latency_seconds)

    async def write(self) -> None:
        """Write what arrives, to the end."""
        loop = asyncio.get_running_loop()
        while True:
            at, chunk = await self._under_way.get()
            await self._network.arrival(at)
            if not chunk:
                self._sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(self._sink, chunk)
            self._num_bytes -= len(chunk)
            if self._num_bytes < self._link.window_bytes:
                self._has_room.set()

    def _read_bytes(self) -> int:
        if self._link.slice_bytes is None:
            return self._link.read_bytes
        return self._slices.randint(1, min(self._link.slice_bytes, self._link.read_bytes))

    def _send(self, chunk: bytes, at: float) -> None:
        gap_seconds = 0.0 if self._link.slice_bytes is None else _GAP_SECONDS
        self.last_arrival = max(at, self.last_arrival + gap_seconds)
        self._under_way.put_nowait((self.last_arrival, chunk))


def _limit_buffers(sock: socket.socket) -> None:
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, buffer, _SOCKET_BUFFER_BYTES)


def _now() -> float:
    return asyncio.get_running_loop().time()
