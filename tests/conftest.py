"""For every test: offline, and quiet."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from harness import carrier

# Read when the libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRPC_VERBOSITY"] = "NONE"
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# A developer's own agent makes no picture of a test.
os.environ["ECDIFF_AGENT"] = ""
# Tiny models gain nothing from threads, and two services with two each get in each other's way on two cores.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cloud-on",
        choices=["grpc", "ray"],
        default="grpc",
        help="What carries the cloud service's calls in the integration tests: grpc.aio, or Ray Serve.",
    )


def pytest_configure(config: pytest.Config) -> None:
    carrier.on_ray = config.getoption("--cloud-on") == "ray"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not carrier.on_ray:
        return
    # Of `ray` alone a folder of tests would be found.
    if importlib.util.find_spec("ray.serve") is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=carrier.NO_RAY))
    for item in items:
        for mark in item.iter_markers("grpc_only"):
            item.add_marker(pytest.mark.skip(reason=f"not on Ray: {mark.args[0]}"))


def pytest_unconfigure() -> None:
    if ray_cloud := sys.modules.get("harness.ray_cloud"):
        ray_cloud.shut_down()
