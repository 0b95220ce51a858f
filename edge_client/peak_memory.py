"""The most memory that this process held, for the report."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")

PEAKS = ("peak_rss_bytes", "peak_device_bytes")


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Return `PEAKS` since the process began: its largest resident set, and what tensors took of a GPU.

    The first is None where the system keeps no account of it (Linux does: proc(5)), the second on a processor.
    """
    on_gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return dict(zip(PEAKS, (_peak_rss_bytes() if _STATUS.is_file() else None, on_gpu), strict=True))


def _peak_rss_bytes() -> int:
    # Not getrusage's: that begins with what the parent process held when it started this one.
    line = next(each for each in _STATUS.read_text().splitlines() if each.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
