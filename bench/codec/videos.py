"""A tiny pair that makes videos of some size."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models import ModelPair
from models.tiny.build import build

NUM_FRAMES, LATENT_HEIGHT, LATENT_WIDTH = 25, 30, 44


@contextlib.contextmanager
def video_pair() -> Iterator[ModelPair]:
    """Yield a random-weight CogVideoX pair whose default is `NUM_FRAMES` of 240 x 352."""
    with tempfile.TemporaryDirectory() as folder:
        pair = ModelPair(Path(folder) / "large", Path(folder) / "small")
        for path in pair:
            build("cogvideox", path, size=path.name)
            config = path / "transformer" / "config.json"
            size = {"sample_frames": NUM_FRAMES, "sample_height": LATENT_HEIGHT, "sample_width": LATENT_WIDTH}
            config.write_text(json.dumps(json.loads(config.read_text()) | size))
        yield pair
