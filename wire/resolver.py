"""What targets stand for now: names are asked of this machine's resolver, whatever it asks in turn."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence

from wire.errors import NotServing
from wire.serving.address import Address
from wire.targets import Endpoint, address_of, is_name

RESOLVE_SECONDS = 2.0
"""What asking for a name may take; a generation may be waiting for it."""


class Targets:
    """Some targets and what they stand for.

    Args:
        targets: As `parse_targets` returns them.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = targets
        self._known: dict[str, list[Endpoint]] = {}
        self.problems: tuple[str, ...] = ()
        """Of the last look: a line for every name that had no answer."""

    @property
    def have_names(self) -> bool:
        """Whether they may stand for other services later."""
        return any(is_name(target) for target in self._targets)

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """Return every service once, in the order of the targets; names are asked for anew.

        A name that has no answer now stands for what it stood for last. A name's own addresses have no order, so that
        clients spread over them.

        Raises:
            NotServing: None of them stands for anything.
        """
        problems: list[str] = []
        found = await asyncio.gather(*(self._endpoints_of(target, problems) for target in self._targets))
        self.problems = tuple(problems)
        by_address = {endpoint.address: endpoint for endpoints in reversed(found) for endpoint in reversed(endpoints)}
        if not by_address:
            raise NotServing("; ".join(problems) or "no cloud address was given")
        return tuple(reversed(by_address.values()))

    async def _endpoints_of(self, target: str, problems: list[str]) -> list[Endpoint]:
        if not is_name(target):
            return [Endpoint(address=target)]
        try:
            self._known[target] = await _resolve(address_of(target))
        except (OSError, UnicodeError) as error:
            reason = str(error) or f"no answer within {RESOLVE_SECONDS:g} s"
            problems.append(f"{target} has no address ({reason})")
        return self._known.get(target, [])


async def _resolve(name: str) -> list[Endpoint]:
    """Return what HOST:PORT stands for: family by family as the system prefers them, each in random order.

    Raises:
        OSError: The name has no address, or nobody answers in time.
        UnicodeError: It is no name.
    """
    wanted = Address.parse(name)
    async with asyncio.timeout(RESOLVE_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    families = list(dict.fromkeys(family for family, *_ in found))
    random.shuffle(found)
    found.sort(key=lambda each: families.index(each[0]))
    addresses = dict.fromkeys(str(Address(host=str(where[0]), port=wanted.port)) for *_, where in found)
    return [Endpoint(address=address, name=name) for address in addresses]
