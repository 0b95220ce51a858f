"""How the command line's work ends: done, interrupted, or with an error that is one plain line or a traceback."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from edge_client import interrupts

T = TypeVar("T")
# How torch says it: a RuntimeError with one of these in its text.
OUT_OF_MEMORY_SIGNS = ("out of memory", "[enforce fail at alloc", "can't allocate memory", "DefaultCPUAllocator")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


class InterruptibleGroup(click.Group):
    """Commands that Ctrl-C ends with `Interrupted`; click would answer it with an empty line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run in a loop of its own; Ctrl-C and SIGTERM cancel, so that sessions and processes are let go.

    Raises:
        Interrupted: By one of these signals.
    """
    import asyncio
    import logging

    async def main() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        return await task

    if interrupts.noted():
        work.close()
        raise Interrupted
    # A call that is cancelled because we are leaving is no news.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # a loop that closes leaves none


def plain_text(error: Exception) -> str | None:
    """Return what went wrong in the user's words, None for what nobody foresaw."""
    from wire.errors import EcdiffError

    text = str(error)
    out_of_memory = isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY_SIGNS)
    if out_of_memory or isinstance(error, MemoryError):
        return "out of memory: ask for a smaller picture or fewer of them, or use another --device or --dtype"
    if isinstance(error, EcdiffError | OSError | ValueError):
        return " ".join([text, *(f"({note})" for note in getattr(error, "__notes__", ()))])
    return None
