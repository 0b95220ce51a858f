"""When a service ends: on a signal, or with whoever started it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Reasons to stop: the first asks politely, a second signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.exit_code = 0
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)

    def when_stdin_ends(self) -> None:
        """Stop when whoever holds the other end of standard input is gone."""

        def watch() -> None:
            # os.read: a thread inside sys.stdin would hold a lock that the interpreter's end wants.
            while os.read(sys.stdin.fileno(), 4096):
                pass
            self._loop.call_soon_threadsafe(self.requested.set)

        threading.Thread(target=watch, name="stdin", daemon=True).start()

    def _on_signal(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            os._exit(1)
        self.exit_code = 130 if number is signal.SIGINT else 0
        self.requested.set()
