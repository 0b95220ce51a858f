"""`cloud-service serve` of the tiny model, that gives its device up in seconds: `python -m harness.impatient_cloud`."""

from __future__ import annotations

import asyncio
import sys

from cloud_service.config import LOGGER_NAME, ServerConfig, Timings
from cloud_service.server import run
from harness.reference import CLOUD_MODEL
from wire.serving.address import Address
from wire.serving.logs import configure_logging

STUCK_SECONDS = 2.0

if __name__ == "__main__":
    configure_logging(LOGGER_NAME, "info")
    anywhere = Address(host="127.0.0.1", port=0)
    config = ServerConfig(
        model=str(CLOUD_MODEL),
        listen=anywhere,
        metrics_listen=anywhere,
        timings=Timings(watch_seconds=0.05, stuck_seconds=STUCK_SECONDS, stuck_steps=1),
    )
    sys.exit(asyncio.run(run(config)))
