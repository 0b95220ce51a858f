"""The system in containers, on a real Docker Engine; without one everything here is skipped, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from harness.engine import Stack, base_image, engine, have_image, prometheus_or_stand_in


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    client = engine()
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(client: docker.DockerClient) -> Iterator[float]:
    """The images of this checkout and of Prometheus; the seconds that building ours took."""
    if not have_image(client, base_image()):
        pytest.skip(f"the base image {base_image()} is not here and cannot be pulled")
    with prometheus_or_stand_in(client):
        yield Stack(client, "ecdiff-test", ("compose.yaml",)).build()
