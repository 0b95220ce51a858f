"""How many latents may be under way at a time."""

from __future__ import annotations


class CreditWindow:
    """The credits of one session: as many as come in time.

    Latents that come late waited on the way for those before them, so the window halves, down to one; with each that
    comes in time it opens by one, up to where it began (additive increase, multiplicative decrease, as TCP's).

    Args:
        size: What Open granted.
    """

    def __init__(self, size: int) -> None:
        self._size = self._window = self._under_way = size

    def came(self, *, late: bool) -> int:
        """Return how many credits to grant now that latents came."""
        self._window = max(1, self._window // 2) if late else min(self._size, self._window + 1)
        self._under_way -= 1
        credits = max(0, self._window - self._under_way)
        self._under_way += credits
        return credits
