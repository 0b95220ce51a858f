"""The time stamps that ends exchange: Unix time that nobody sets.

An operating system's clock is stepped and slewed by its keeper, in the middle of a generation too. What is read here is
that clock once, at the import, and from then on the monotonic one: an end may be wrong by whatever its clock was wrong
by, which the clock offset takes off, but never by one thing now and another a moment later.
"""

from __future__ import annotations

import time

_EPOCH_SECONDS = time.time() - time.monotonic()


def stamp_seconds() -> float:
    """Return this end's time stamp: Unix seconds by the clock as it stood when the process began."""
    return _EPOCH_SECONDS + time.monotonic()
