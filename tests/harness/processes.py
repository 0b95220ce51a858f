"""Looking at processes from outside: children, and the ports they listen on."""

from __future__ import annotations

from pathlib import Path

_LISTEN = "0A"


def children(pid: int) -> list[int]:
    """Return the process ids whose parent is `pid`."""
    return [each for each in _all() if _status(each)[1] == str(pid)]


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has collected counts as ended."""
    return _status(pid)[0] in ("Z", "")


def listening_addresses(pid: int) -> list[str]:
    """Return the 127.0.0.1 addresses on which a process listens."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # closed since it was listed
            continue
        if target.startswith("socket:["):
            sockets.add(target.removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTEN and row[9] in sockets]
    return [f"127.0.0.1:{port}" for port in ports]


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _status(pid: int) -> tuple[str, str]:
    """Return state and parent; empty where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", ""
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, parent
