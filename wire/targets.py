"""Services as a command line names them: HOST:PORT for one, dns:///HOST:PORT for all that a name stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DNS = "dns:///"
# An IPv6 address stands in brackets: its last part would be taken for the port.
_HOST_AND_PORT = re.compile(r"(?:\[[^\[\]]+\]|[^\[\]:/\s]+):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One service, as it is connected to.

    Attributes:
        address: HOST:PORT.
        name: HOST:PORT that the address was resolved from, whose host the certificate is for; empty: the address's own.
    """

    address: str
    name: str = ""


def parse_targets(text: str) -> tuple[str, ...]:
    """Read `TARGET[,TARGET]`, each HOST:PORT or dns:///HOST:PORT.

    Raises:
        ValueError: A part that is neither.
    """
    return tuple(_checked(part.strip()) for part in text.split(","))


def _checked(target: str) -> str:
    match = _HOST_AND_PORT.fullmatch(address_of(target))
    if match is None or not 0 < int(match[1]) < 65536:
        raise ValueError(
            f"--cloud must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051, or dns:///HOST:PORT, not {target!r}"
        )
    return target


def is_name(target: str) -> bool:
    """Whether a target stands for every address of a name."""
    return target.startswith(_DNS)


def address_of(target: str) -> str:
    """Return the HOST:PORT of a target."""
    return target.removeprefix(_DNS)
