"""What targets stand for now: names are asked of this machine's resolver, whatever it asks in turn."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from wire.errors import NotServing
from wire.serving.address import Address
from wire.targets import Endpoint, address_of, is_name

RESOLVE_SECONDS = 2.0
"""What asking for a name may take; a generation may be waiting for it."""

_Answer = list[tuple[Any, ...]]
# One question for a name at a time: a resolver that is dead keeps each of them for long after nobody waits any more.
_under_way: dict[str, Future[_Answer]] = {}


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
        # Shielded, since others may wait for the same answer.
        found = await asyncio.shield(asyncio.wrap_future(_question(wanted)))
    families = list(dict.fromkeys(family for family, *_ in found))
    random.shuffle(found)
    found.sort(key=lambda each: families.index(each[0]))
    addresses = dict.fromkeys(str(Address(host=str(where[0]), port=wanted.port)) for *_, where in found)
    return [Endpoint(address=address, name=name) for address in addresses]


def _question(wanted: Address) -> Future[_Answer]:
    """Return the answer to come for a name, of the question that is under way or of a new one."""
    name = str(wanted)
    answer = _under_way.get(name)
    if answer is None:
        answer = _under_way[name] = Future()
        # No thread of the loop's own few, which everything else needs; and none that the end of the process waits for.
        threading.Thread(target=_ask, args=(wanted, answer), name="resolver", daemon=True).start()
    return answer


def _ask(wanted: Address, answer: Future[_Answer]) -> None:
    try:
        found = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    except BaseException as error:  # whatever it is: it is for those who wait
        del _under_way[str(wanted)]
        answer.set_exception(error)
    else:
        del _under_way[str(wanted)]
        answer.set_result(found)
