"""The cloud service of a bench that needs one of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from edge_client.cloud_link import CloudLink
from edge_client.local_cloud import LocalCloud
from wire.credentials import Credentials

LOAD_SECONDS = 300.0


@contextlib.asynccontextmanager
async def cloud_service(model: str | None = None, *, device: str = "auto") -> AsyncIterator[str]:
    """Run a cloud service in a process of its own; yields its address when it serves.

    Args:
        model: What `--model` takes; None: the bundled one.
        device: What `--device` takes.

    Raises:
        NotServing: It cannot load its model.
    """
    cloud = await LocalCloud.start(model, device=device, dtype="auto")
    try:
        await _serving(cloud)
        yield cloud.address
    finally:
        await cloud.stop()


async def _serving(cloud: LocalCloud) -> None:
    """Wait until the service has loaded its model.

    Raises:
        NotServing: It cannot; its own last words.
    """
    connecting = asyncio.create_task(
        CloudLink.connect((cloud.address,), Credentials(), wait_seconds=LOAD_SECONDS, keep_trying=True)
    )
    failing = asyncio.create_task(cloud.wait_failed())
    try:
        await asyncio.wait({connecting, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            raise failing.result()
        await connecting.result().close()
    finally:
        for task in (connecting, failing):
            task.cancel()
        await asyncio.gather(connecting, failing, return_exceptions=True)
