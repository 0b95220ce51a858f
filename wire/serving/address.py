"""Where a service listens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Address:
    """A host and a port; port 0 lets the system choose one."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"a port lies in 0..65535, not {self.port}")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in `HOST:PORT` or `[IPV6]:PORT`.

        Raises:
            ValueError: It is neither.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if not colon or not host or not port.isdecimal():
            raise ValueError(f"an address is HOST:PORT, for example 127.0.0.1:50051, not {text!r}")
        return cls(host=host, port=int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
