"""Ctrl-C and SIGTERM that are not lost.

A `KeyboardInterrupt` raised while a library is being imported can end in a callback whose errors nobody sees, and the
program goes on. So the signal is also noted, and asked for before the work begins.
"""

from __future__ import annotations

import signal
from types import FrameType

_noted: list[int] = []


def install() -> None:
    """Note both signals from now on, and raise `KeyboardInterrupt` as Python does for Ctrl-C."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def noted() -> bool:
    """Whether one of the signals has come."""
    return bool(_noted)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _noted.append(number)
    raise KeyboardInterrupt
