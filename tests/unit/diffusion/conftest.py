import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from diffusion.loading import load_model
from diffusion.model import Model

SD_TINY = Path(__file__).parents[2] / "data" / "sd-tiny"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    # The models are tiny: a second thread only waits, and on a busy machine it waits for long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cloud_folder() -> Path:
    return SD_TINY / "cloud"


@pytest.fixture(scope="session")
def cloud(cloud_folder) -> Model:
    return load_model(cloud_folder, device="cpu")


@pytest.fixture
def changed_copy(tmp_path, cloud_folder) -> Callable[..., Path]:
    """Copy the cloud model and change some JSON files in it: `changed_copy({"unet/config.json": {...}})`."""

    def copy(changes: dict[str, dict] | None = None, source: Path = cloud_folder) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(source, folder)
        for name, update in (changes or {}).items():
            file = folder / name
            file.write_text(json.dumps(json.loads(file.read_text()) | update))
        return folder

    return copy
