"""What carries the calls of the cloud service under test."""

from __future__ import annotations

NO_RAY = "Ray is not installed: make test-ray"

on_ray = False
"""Ray Serve instead of grpc.aio; set by `pytest --cloud-on ray`."""
