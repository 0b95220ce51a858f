"""Names with several addresses, without a DNS server: this process's resolver knows them; the system does the rest."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest


class Names:
    """What names stand for; a test may change it at any time. An empty list is a name without an address.

    Args:
        monkeypatch: Puts itself in the place of `socket.getaddrinfo` for the time of the test.
        **addresses: By name, with `_` for the dots; IPv4 and IPv6.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
        self.addresses = {name.replace("_", "."): found for name, found in addresses.items()}
        self.num_asked = 0
        self.answers = threading.Event()
        """A test may clear it: then nobody gets an answer, as from a resolver that is dead."""
        self.answers.set()
        self._system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host not in self.addresses:
            return self._system(host, port, *rest, **options)
        self.num_asked += 1
        self.answers.wait()
        if not self.addresses[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [each for address in self.addresses[host] for each in self._system(address, port, *rest, **options)]
