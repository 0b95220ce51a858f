"""Ties a process to its parent, so that a killed test run leaves nothing behind: `python -m harness.tied MODULE`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent is gone, however that ended; survives exec, not fork."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
