"""For every test: offline, and quiet."""

from __future__ import annotations

import os

# Read when the libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRPC_VERBOSITY"] = "NONE"
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# A developer's own agent makes no picture of a test.
os.environ["ECDIFF_AGENT"] = ""
# Tiny models gain nothing from threads, and two services with two each get in each other's way on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
