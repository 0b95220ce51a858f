"""A program that is not Python as one of `Programs`: `python -m harness.executable PATH ARGUMENTS`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.execv(sys.argv[1], sys.argv[1:])
