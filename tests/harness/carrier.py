"""What carries the calls of the cloud service under test."""

from __future__ import annotations

on_ray = False
"""Ray Serve instead of grpc.aio; set by `pytest --cloud-on ray`."""
