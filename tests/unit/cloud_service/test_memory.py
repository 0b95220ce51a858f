"""What a batch takes, and what is let in: with a memory whose size is known, and with the machine's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_service import memory as memory_module
from cloud_service.memory import HostMemory, device_memory, measure_batches

MIB = 2**20


class Memory:
    """A device of a known size on which a pass takes so much a session, and leaves nothing behind."""

    def __init__(self, *, size: int, model: int, first: int, more: int) -> None:
        self.size, self.model, self.first, self.more = size, model, first, more
        self.peak = 0
        self.passes: list[int] = []

    def free_bytes(self) -> int:
        return self.size - self.model

    def used_bytes(self) -> int:
        return self.model

    def forget_peak(self) -> None:
        self.peak = self.model

    def peak_bytes(self) -> int:
        return self.peak

    def run(self, batch_size: int) -> None:
        self.passes.append(batch_size)
        self.peak = self.model + self.first + (batch_size - 1) * self.more
        assert self.peak <= self.size, "the device is out of memory"


def test_a_batch_that_fits_is_measured_up_to_the_largest() -> None:
    memory = Memory(size=1000 * MIB, model=300 * MIB, first=20 * MIB, more=10 * MIB)
    cost = measure_batches(memory.run, memory, max_batch=12)
    assert memory.passes == [1, 2, 4, 8, 12]
    assert (cost.first_bytes, cost.more_bytes) == (20 * MIB, 10 * MIB)
    assert cost.fits(69, memory)
    assert not cost.fits(70, memory)


@pytest.mark.parametrize(("size_mib", "fits"), [(420, 11), (340, 3), (360, 5)])
def test_one_that_does_not_is_refused_before_it_runs_with_what_would_fit(size_mib: int, fits: int) -> None:
    memory = Memory(size=size_mib * MIB, model=300 * MIB, first=20 * MIB, more=10 * MIB)
    with pytest.raises(MemoryError, match=rf"a batch of 16 takes about 0\.2 GiB .* say --max-batch {fits},"):
        measure_batches(memory.run, memory, max_batch=16)
    assert memory.passes[-1] <= fits


def test_one_session_that_does_not_fit_is_refused_where_further_ones_take_nothing() -> None:
    memory = Memory(size=400 * MIB, model=300 * MIB, first=40 * MIB, more=0)

    def run(batch_size: int) -> None:
        memory.run(batch_size)
        if batch_size == 4:  # another process takes what is left
            memory.size = 330 * MIB

    with pytest.raises(MemoryError, match="say --max-batch 1,"):
        measure_batches(run, memory, max_batch=8)
    assert memory.passes == [1, 2, 4]


def test_a_slow_device_is_not_asked_for_every_size() -> None:
    memory = Memory(size=1000 * MIB, model=300 * MIB, first=20 * MIB, more=10 * MIB)
    cost = measure_batches(memory.run, memory, max_batch=64, max_seconds=0.0)
    assert memory.passes == [1, 2]
    assert cost.of(64) == (20 + 63 * 10) * MIB
    with pytest.raises(MemoryError, match="say --max-batch 69,"):
        measure_batches(memory.run, memory, max_batch=90, max_seconds=0.0)


def test_the_machines_own_memory_sees_what_is_allocated_and_given_back() -> None:
    memory = device_memory(torch.device("cpu"))
    if memory is None:
        pytest.skip("only Linux tells what a process holds")
    assert isinstance(memory, HostMemory)
    used, free = memory.used_bytes(), memory.free_bytes()
    memory.forget_peak()
    block = np.ones(200 * MIB, dtype=np.uint8)
    assert memory.used_bytes() - used > 180 * MIB
    del block
    assert memory.peak_bytes() - used > 180 * MIB
    assert memory.used_bytes() - used < 100 * MIB
    assert free > 0


def test_a_peak_that_may_not_be_reset_is_a_memory_that_nobody_can_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A folder is there and cannot be written to, whoever asks.
    monkeypatch.setattr(memory_module, "_CLEAR_REFS", tmp_path)
    assert device_memory(torch.device("cpu")) is None
