"""What a batch takes of the device's memory: measured before anybody is let in, never guessed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class DeviceMemory(Protocol):
    """The memory that forward passes live in, in bytes."""

    def free_bytes(self) -> int:
        """Return what this process may still take."""

    def used_bytes(self) -> int:
        """Return what it holds now."""

    def kept_bytes(self) -> int:
        """Return what it holds for good: not what an allocator could give back."""

    def forget_peak(self) -> None:
        """Begin a new measurement of the peak."""

    def peak_bytes(self) -> int:
        """Return the most it held since then."""


class CudaMemory:
    """Of one CUDA device, by torch's own allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """Return what the driver has left, and what torch holds in reserve."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)

    def used_bytes(self) -> int:
        """Return what tensors hold."""
        return torch.cuda.memory_allocated(self._device)

    def kept_bytes(self) -> int:
        """Return what tensors and captured graphs hold; of the latter torch says so only by keeping it in reserve."""
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self._device)

    def forget_peak(self) -> None:
        """Begin a new measurement of the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """Return the most that tensors held since then."""
        return torch.cuda.max_memory_allocated(self._device)


class HostMemory:
    """Of this machine, or of the container that this process is in. Linux: proc(5), cgroup v2."""

    def free_bytes(self) -> int:
        """Return what is available; a container's limit may be nearer than the machine's."""
        available = _field(Path("/proc/meminfo"), "MemAvailable")
        limit = _CGROUP / "memory.max"
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            cached = _words(_CGROUP / "memory.stat").get("inactive_file", 0)
            used = int((_CGROUP / "memory.current").read_text()) - cached
            available = min(available, int(text) - used)
        return max(0, available)

    def used_bytes(self) -> int:
        """Return the resident set."""
        return _field(Path("/proc/self/status"), "VmRSS")

    def kept_bytes(self) -> int:
        """Return the resident set: nobody can say what of it could be given back."""
        return self.used_bytes()

    def forget_peak(self) -> None:
        """Begin a new measurement of the peak.

        Raises:
            OSError: The kernel has no such file, or lets nobody write to it.
        """
        _CLEAR_REFS.write_text("5")

    def peak_bytes(self) -> int:
        """Return the largest resident set since then."""
        return _field(Path("/proc/self/status"), "VmHWM")


def device_memory(device: torch.device) -> DeviceMemory | None:
    """Return the memory of a device; None where nobody can say what it has."""
    if device.type == "cuda":
        return CudaMemory(device)
    memory = HostMemory()
    try:
        # A file that exists may not be written for all that: in a sandbox, or where /proc is read-only.
        memory.forget_peak()
    except OSError:
        return None
    return memory


@dataclass(frozen=True, kw_only=True)
class BatchCost:
    """What forward passes take beyond the model itself.

    Attributes:
        held_bytes: What the process held before the first of them.
        first_bytes: A batch of one at the default size, with what the first pass of all leaves behind.
        more_bytes: Each further one.
    """

    held_bytes: int
    first_bytes: int
    more_bytes: float

    def beside(self, more_bytes: int) -> BatchCost:
        """Return what they take when the process holds so much more for good."""
        return dataclasses.replace(self, held_bytes=self.held_bytes + more_bytes)

    def of(self, num_sessions: float) -> float:
        """Return what a batch takes; a picture of another size counts as that many of the default one."""
        return self.first_bytes + max(0.0, num_sessions - 1) * self.more_bytes

    def most_sessions(self, room_bytes: int) -> int:
        """Return the largest batch that so much room beside the model is enough for, at least one."""
        # On the host a further session may show as nothing at all: it fits into what the first has left behind.
        return 1 + max(0, int((room_bytes - self.first_bytes) / max(1.0, self.more_bytes)))

    def fits(self, num_sessions: float, memory: DeviceMemory) -> bool:
        """Whether there is room for a batch; what earlier passes left in the allocator is room too."""
        return self.held_bytes + self.of(num_sessions) <= memory.used_bytes() + memory.free_bytes()


def measure_batches(
    run: Callable[[int], None], memory: DeviceMemory, *, max_batch: int, max_seconds: float = 10.0
) -> BatchCost:
    """Run growing batches, up to the largest, as long as the next one is expected to fit and not to take too long.

    Args:
        run: One forward pass of a batch size.
        memory: Where it runs.
        max_batch: Most sessions in one forward pass.
        max_seconds: After so long the rest is extrapolated: a large model on a processor would take minutes.

    Raises:
        MemoryError: The largest will not fit; the text says what would.
    """
    held, size, started = memory.used_bytes(), 1, time.monotonic()
    first = _peak(run, memory, 1) - held
    # Of the second nothing is known yet: it takes no more than the first.
    cost = BatchCost(held_bytes=held, first_bytes=first, more_bytes=first)
    while size < max_batch and cost.fits(min(2 * size, max_batch), memory):
        # So far 1 + 2 + ... + size sessions: the next pass takes as long again.
        if 2 * (time.monotonic() - started) > max_seconds and size > 1:
            break
        size = min(2 * size, max_batch)
        more = max(0.0, (_peak(run, memory, size) - held - first) / (size - 1))
        cost = BatchCost(held_bytes=held, first_bytes=first, more_bytes=more)
    if not cost.fits(max_batch, memory):
        room = memory.used_bytes() + memory.free_bytes() - held
        raise MemoryError(
            f"a batch of {max_batch} takes about {cost.of(max_batch) / _GIB:.1f} GiB beside the model and "
            f"{room / _GIB:.1f} GiB are free: say --max-batch {cost.most_sessions(room)}, or make room"
        )
    return cost


def _peak(run: Callable[[int], None], memory: DeviceMemory, batch_size: int) -> int:
    """Return the most that the process held during a pass."""
    memory.forget_peak()
    run(batch_size)
    return memory.peak_bytes()


def _field(path: Path, name: str) -> int:
    """Return a line of `/proc` such as `VmRSS:   123 kB`, in bytes."""
    line = next(each for each in path.read_text().splitlines() if each.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def _words(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
