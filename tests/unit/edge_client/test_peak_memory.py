"""The peak memory in the report: this process's, and a GPU's only where there is one."""

from __future__ import annotations

import psutil
import torch

from edge_client.peak_memory import peak_memory

SLACK_BYTES = 4 * 2**20  # the kernel counts pages in batches, thread by thread


def test_peak_stays_when_memory_is_given_back() -> None:
    held = torch.ones(64 * 2**20)
    resident = psutil.Process().memory_info().rss
    del held
    peak = peak_memory(torch.device("cpu"))["peak_rss_bytes"]
    assert peak is not None
    assert peak >= resident - SLACK_BYTES
    assert resident > psutil.Process().memory_info().rss


def test_a_processor_has_no_device_memory_of_its_own() -> None:
    assert peak_memory(torch.device("cpu"))["peak_device_bytes"] is None
