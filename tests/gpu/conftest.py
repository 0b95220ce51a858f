"""What needs a CUDA device: `pytest -m gpu -s`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.programs import Programs


@pytest.fixture(scope="session", autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with Programs(tmp_path_factory.mktemp("programs")) as programs:
        yield programs


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return Path(__file__).parents[1] / "data" / "sd-tiny" / "cloud"
