"""What is read of files, and read again when they change: nothing has to be restarted for a renewal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """What `read` makes of some files; while they cannot be used, what they were before stands.

    The files are looked at when `now` is asked, by one caller at a time.

    Args:
        name: What they are, for the log.
        files: Where they are.
        read: Reads all of them.

    Raises:
        OSError: One of them cannot be read.
        ValueError: `read` has no use for them; the text says why.
    """

    def __init__(self, name: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._name = name
        self._files = files
        self._read = read
        self._seen = self._look()
        self._complaint = ""
        self.latest = read()
        """What was read last, without a look at the files."""

    def now(self) -> T:
        """Return what the files hold, or held when they could be used last."""
        try:
            if (seen := self._look()) == self._seen:
                self._complaint = ""
                return self.latest
            self.latest = self._read()
        except (OSError, ValueError) as error:
            # Not remembered as seen: the next caller looks again. Told once, for callers may be many.
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("the old %s is used on", self._name, extra={"reason": str(error)})
            return self.latest
        self._seen, self._complaint = seen, ""
        _log.info("a renewed %s is used", self._name)
        return self.latest

    def _look(self) -> list[tuple[int, int, int]]:
        """Return what changes when a file is written, or a link to it is moved."""
        states = [path.stat() for path in self._files]
        return [(state.st_mtime_ns, state.st_ino, state.st_size) for state in states]
