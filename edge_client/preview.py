"""Live previews: on a thread of their own, the newest latents only, so that no step waits for a picture."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from PIL import Image
from torch import Tensor

from diffusion.families.base import FamilyModel
from diffusion.preview import Previewer, clean_latents
from diffusion.schedule import Schedule
from diffusion.tensors import from_array
from diffusion.weight_files import first_line
from edge_client.edge_model import EdgeModel
from edge_client.recorder import Recorder
from edge_client.request import Size
from wire.messages import Array


class LivePreview:
    """Makes PNGs of what a generation will come to.

    Args:
        edge: Its VAE is borrowed; nothing else of it.
        schedule: Returns that of the trajectory.
        size: Width and height of the pictures, in pixels.
        show: Given each PNG, on the event loop.
        fail: Told there, once, why there will be none: a preview must not cost the picture.
    """

    def __init__(
        self,
        edge: EdgeModel,
        schedule: Callable[[], Schedule],
        *,
        size: tuple[int, int],
        show: Callable[[bytes], None],
        fail: Callable[[str], None],
    ) -> None:
        self._previewer = Previewer(cast(FamilyModel, edge.model))
        self._schedule, self._size, self._show, self._fail = schedule, size, show, fail
        self._loop = asyncio.get_running_loop()
        self._waiting: tuple[int, Any] | None = None
        self._last: tuple[int, Tensor] | None = None
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)
        self._thread.start()

    def offer(self, step_index: int, latents: Array | Tensor) -> None:
        """Take x at a step, scheduler scaling, which nobody writes to any more; what waits gives way."""
        with self._wake:
            self._waiting = step_index, latents
            self._wake.notify()

    async def stop(self) -> None:
        """Make no more of them."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            self._make_all()
        except Exception as error:  # of whatever VAE: it may have no encoder, or no memory
            self._loop.call_soon_threadsafe(self._fail, first_line(error))

    def _make_all(self) -> None:
        while (offered := self._next()) is not None:
            step_index, given = offered
            latents = given.cpu() if isinstance(given, Tensor) else from_array(given)
            before, self._last = self._last, (step_index, latents)
            if before is None or before[0] >= step_index:
                continue
            picture = Image.fromarray(self._previewer(clean_latents(self._schedule(), before, self._last)))
            file = io.BytesIO()
            picture.resize(self._size, Image.Resampling.BICUBIC).save(file, format="PNG", compress_level=1)
            self._loop.call_soon_threadsafe(self._show, file.getvalue())

    def _next(self) -> tuple[int, Any] | None:
        with self._wake:
            self._wake.wait_for(lambda: self._stopped or self._waiting is not None)
            offered, self._waiting = self._waiting, None
            return None if self._stopped else offered


@contextlib.asynccontextmanager
async def previewing(
    edge: EdgeModel, recorder: Recorder, schedule: Callable[[], Schedule], size: Size
) -> AsyncIterator[None]:
    """Pass what the recorder sees of latents to a live preview, if its request wants one, and the previews back.

    Args:
        edge: The small model.
        recorder: Of the generation.
        schedule: Returns that of the trajectory.
        size: Of the pictures.
    """
    if not recorder.request.preview or recorder.on_progress is None:
        yield
        return
    preview = LivePreview(
        edge,
        schedule,
        size=(size.width, size.height),
        show=lambda png: recorder.notify(preview=png),
        fail=lambda why: recorder.warn(f"there is no preview: {why}"),
    )
    recorder.on_latents = preview.offer
    try:
        yield
    finally:
        await preview.stop()
