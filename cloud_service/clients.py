"""Who a client is, and what one of them may take of what all of them share."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import unquote

# A client may be ahead of its rate by what it sends in so long: an Open with embeddings is no offence.
_BURST_SECONDS = 1.0
# What one customer of a network has of IPv6: any address of it costs nothing (RFC 6177).
_IPV6_PREFIX_BITS = 64
# Clients that are remembered; one that sent nothing for a while is as good as new.
_MAX_REMEMBERED = 4096
_BYTES_PER_MBIT = 125_000


class Peer(Protocol):
    """The other end of a call, as gRPC knows it."""

    def peer(self) -> str:
        """Return its address, such as `ipv4:192.0.2.7:50321`."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS proved of it."""


def client_of(context: Peer) -> str:
    """Return whose call this is: the name in its certificate where it showed one, else the host that it comes from.

    A token says nothing here, for all clients have the same. Behind one address translation all are one client, and so
    are all of an IPv6 network of 64 bits: its hosts choose their addresses themselves.
    """
    for name in context.auth_context().get("x509_common_name", ()):
        return f"name {name.decode(errors='replace')}"
    kind, _, address = context.peer().partition(":")
    if kind != "ipv6":
        return f"host {address.rpartition(':')[0]}" if kind == "ipv4" else f"host {kind}"
    # gRPC writes `[2001:db8::1]:50321` with its brackets escaped; behind `%` stands the interface of a link-local one.
    host = unquote(address).rpartition(":")[0].strip("[]").partition("%")[0]
    return f"host {ipaddress.ip_network((host, _IPV6_PREFIX_BITS), strict=False)}"


class Reading:
    """How fast the messages of each client are read; those of one that sends faster wait in its own connection.

    Args:
        max_mbit_s: Of each client, over all its sessions; None for no limit.
    """

    def __init__(self, max_mbit_s: float | None) -> None:
        self._bytes_per_second = None if max_mbit_s is None else max_mbit_s * _BYTES_PER_MBIT
        # When what a client has sent so far would have come at its rate; never in the past.
        self._paid_until: dict[str, float] = {}

    def take(self, client: str, num_bytes: int) -> float:
        """Count what a client sent.

        Returns:
            How long it is ahead of its rate, in seconds: to be waited before more of it is read.
        """
        if self._bytes_per_second is None:
            return 0.0
        now = time.monotonic()
        paid_until = max(now, self._paid_until.get(client, now)) + num_bytes / self._bytes_per_second
        self._forget_idle(now)
        self._paid_until[client] = paid_until
        return max(0.0, paid_until - now - _BURST_SECONDS)

    def _forget_idle(self, now: float) -> None:
        if len(self._paid_until) >= _MAX_REMEMBERED:
            self._paid_until = {client: until for client, until in self._paid_until.items() if until > now}
