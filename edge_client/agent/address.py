"""Where the agent of this machine listens."""

from __future__ import annotations

import os

import click

from wire.serving.address import Address

VARIABLE = "ECDIFF_AGENT"
DEFAULT_ADDRESS = "127.0.0.1:50071"
DEFAULT_METRICS_ADDRESS = "127.0.0.1:9103"


def agent_address() -> tuple[Address | None, bool]:
    """Return where an agent would listen, and whether the environment names it; None where it names nothing.

    Raises:
        click.UsageError: What it names is no address of this machine.
    """
    named = os.environ.get(VARIABLE)
    if named == "":
        return None, True
    try:
        address = Address.parse(named or DEFAULT_ADDRESS)
    except ValueError as error:
        raise click.UsageError(f"{VARIABLE}: {error}") from error
    if not address.loopback:
        raise click.UsageError(f"{VARIABLE} names an agent of this machine, such as {DEFAULT_ADDRESS}, not {address}")
    return address, named is not None
