"""The emulated network as a child process, with its faults at hand."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]


class NetworkProcess:
    """A running `python -m bench.network`; each fault is in force when the method returns.

    Attributes:
        address: HOST:PORT to connect to.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer().removeprefix("listening on ")

    def blackhole(self) -> None:
        """As `EmulatedNetwork.blackhole`."""
        self._say("blackhole")

    def restore(self) -> None:
        """As `EmulatedNetwork.restore`."""
        self._say("restore")

    def reset(self) -> None:
        """As `EmulatedNetwork.reset`."""
        self._say("reset")

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the emulated network ended with status {self._process.wait()}; it has said why")
        return line


@contextlib.contextmanager
def network_process(target: str, link_name: str) -> Iterator[NetworkProcess]:
    """Run an emulated network in a process of its own, beside the block.

    It ends with the block, or with this process, however that ends: its standard input closes then.

    Args:
        target: HOST:PORT behind it.
        link_name: One of `LINKS`.

    Raises:
        RuntimeError: It ended at once; its own line on stderr says why.
    """
    command = [sys.executable, "-m", "bench.network", "--to", target, "--link", link_name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY
    ) as process:
        yield NetworkProcess(process)
