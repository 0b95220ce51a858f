"""A TCP link that can be slow, narrow, silent or cut: runs between an edge and a cloud on 127.0.0.1.

Bytes are delayed by time stamps, so a long way keeps its pipelining; all connections share one queue in each
direction, as they share a wire; what does not fit in the queue holds the sender back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

_CHUNK_BYTES = 16 * 1024
_MAX_QUEUE_SECONDS = 0.5
# l_onoff, l_linger: closing sends RST.
_RESET = struct.pack("ii", 1, 0)


@dataclass
class _Wire:
    """One direction, shared by every connection."""

    latency_seconds: float
    bytes_per_second: float | None
    free_at: float = 0.0
    num_bytes: int = 0

    def arrival(self, size: int, now: float) -> float:
        """Return when `size` bytes handed over now arrive."""
        self.num_bytes += size
        begin = max(now, self.free_at)
        self.free_at = begin + (size / self.bytes_per_second if self.bytes_per_second else 0.0)
        return self.free_at + self.latency_seconds


@dataclass
class SlowLink:
    """`async with SlowLink(target) as link:`, then connect to `link.address`.

    Attributes:
        target: HOST:PORT behind it.
        latency_seconds: One way.
        bits_per_second: Each way; None for no limit.
    """

    target: str
    latency_seconds: float = 0.0
    bits_per_second: float | None = None
    address: str = ""
    _silent: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> SlowLink:
        rate = None if self.bits_per_second is None else self.bits_per_second / 8
        self.up, self.down = _Wire(self.latency_seconds, rate), _Wire(self.latency_seconds, rate)
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 5)

    def blackhole(self) -> None:
        """From now on every byte vanishes; connections stay open."""
        self._silent = True

    def reset(self) -> None:
        """Cut every connection with RST, and take no new ones."""
        self._server.close()
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        host, _, port = self.target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers.add(far_writer)
        for source, sink, wire in ((reader, far_writer, self.up), (far_reader, writer, self.down)):
            self._start(self._carry(source, sink, wire))

    def _start(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, wire: _Wire) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._start(self._deliver(under_way, sink))
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(_CHUNK_BYTES):
                if self._silent:
                    continue
                under_way.put_nowait((wire.arrival(len(chunk), clock()), chunk))
                await asyncio.sleep(max(0.0, wire.free_at - clock() - _MAX_QUEUE_SECONDS))
        under_way.put_nowait((clock() + wire.latency_seconds, b""))

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(ConnectionError):
            while True:
                arrives_at, chunk = await under_way.get()
                await asyncio.sleep(max(0.0, arrives_at - clock()))
                if self._silent:
                    continue
                if not chunk:
                    sink.close()
                    return
                sink.write(chunk)
                await sink.drain()
