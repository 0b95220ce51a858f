"""What the agent does between generations: it keeps the way to the cloud open, and measured."""

from __future__ import annotations

import asyncio
import logging

from edge_client.agent.config import LOGGER_NAME
from edge_client.client import EdgeClient
from edge_client.observations import clock_observations, rtt_observations
from wire.errors import EcdiffError

_log = logging.getLogger(LOGGER_NAME)
# From one probe, or one attempt to reach a cloud that is away, to the next.
PROBE_SECONDS = 3.0


class Idle:
    """Probes the cloud, and reaches it again after a loss, while nothing else is done.

    Args:
        client: Whose cloud it is.
    """

    def __init__(self, client: EdgeClient) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self.problem = "not reached yet"

    def begin(self) -> None:
        """Go on until `end`."""
        self._task = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """Stop at once: no generation waits for a probe."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _watch(self) -> None:
        while True:
            try:
                link = await self._client.reach_cloud()
            except (EcdiffError, OSError) as error:
                if str(error) != self.problem:
                    _log.warning("no cloud", extra={"reason": str(error)})
                self.problem = str(error)
            except Exception as error:  # whatever it is: else the cloud would not be reached again between generations
                self.problem = f"reaching the cloud failed: {type(error).__name__}: {error}"
                _log.exception("reaching the cloud failed")
            else:
                if self.problem:
                    _log.info("cloud reached", extra={"address": link.address})
                self.problem = ""
                self._client.metrics.observe(
                    rtt_observations("channel", link.estimate.take_new_rtts()) + clock_observations(link.estimate)
                )
            await asyncio.sleep(PROBE_SECONDS)
