"""`python -m bench.network`: the emulated network as a command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import threading

import click

from bench.network.emulation import EmulatedNetwork
from bench.network.link import LINKS

_FAULTS = ("blackhole", "restore", "reset")
_HELP = """Put an emulated network in front of a service.

The first line of output is `listening on HOST:PORT`: connect there instead of to the service. All connections share
one queue and one bandwidth in each direction. There is room for 500 connections.

\b
Links (latency is that of the round trip; half of it is added each way):
{links}

\b
Type a line to cause a fault; the word comes back when it is in force:
  blackhole  nothing arrives any more; connections stay open
  restore    what was held up arrives, and everything after it
  reset      every open connection is cut; new ones are taken

It ends at the end of its input (Ctrl-D), and on SIGINT and SIGTERM.

\b
Example, in two terminals:
  cloud-service serve --listen 127.0.0.1:50051
  python -m bench.network --listen 127.0.0.1:50052 --to 127.0.0.1:50051 --link dsl
and then edge-client generate "red apple" --cloud 127.0.0.1:50052
""".format(links="\n".join(f"  {name:10} {link}" for name, link in LINKS.items()))


@click.command(help=_HELP, context_settings={"max_content_width": 120})
@click.option("--to", "target", required=True, metavar="HOST:PORT", help="The service behind it.")
@click.option("--link", "link_name", required=True, type=click.Choice(list(LINKS)), help="What lies between.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
def main(target: str, link_name: str, listen: str) -> None:
    """Run until told to end."""
    try:
        network = EmulatedNetwork(target, LINKS[link_name], listen=listen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        # select() wakes to the microsecond, where epoll rounds up to the next millisecond.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            runner.run(_serve(network))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen}: {error.strerror}") from error


async def _serve(network: EmulatedNetwork) -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lines.put_nowait, None)
    async with network:
        click.echo(f"listening on {network.address}")
        threading.Thread(target=_read_lines, args=(loop, lines), daemon=True).start()
        while (line := await lines.get()) is not None:
            if line in _FAULTS:
                getattr(network, line)()
                click.echo(line)
            else:
                click.echo(f"no such fault: {line!r}; there are {', '.join(_FAULTS)}")


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    """Pass the lines of standard input on, and None at its end; a thread, because it may be a file or a terminal."""
    # After a signal the loop may be closed before the input is.
    with open(0, "rb", buffering=0, closefd=False) as stdin, contextlib.suppress(RuntimeError):
        for line in stdin:
            loop.call_soon_threadsafe(lines.put_nowait, os.fsdecode(line).strip())
        loop.call_soon_threadsafe(lines.put_nowait, None)


if __name__ == "__main__":
    main()
