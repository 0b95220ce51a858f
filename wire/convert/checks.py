"""Checks of single remote values; each returns the value or raises InvalidRequest with one plain line."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable
from typing import TypeVar

from wire.errors import InvalidRequest, VersionMismatch
from wire.messages import PROTOCOL_VERSION

MAX_STEPS = 1000
MAX_SECONDS = 86_400.0
# Of a clock, in Unix time: the year 5138. Anything beyond is no clock that is wrong, but no clock.
MAX_STAMP_SECONDS = 1e11
MAX_DIM = 65536
MAX_ID_CHARS = 128
MAX_NAME_CHARS = 256
MAX_CONFIG_CHARS = 64 * 1024
MAX_LIST_ITEMS = 64

Member = TypeVar("Member", bound=enum.Enum)


def require(condition: bool, text: str) -> None:
    """Raise InvalidRequest(`text`) unless `condition`."""
    if not condition:
        raise InvalidRequest(text)


def number(value: float, what: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number in `low..high`."""
    require(math.isfinite(value) and low <= value <= high, f"{what} must be finite{_range(low, high)}, not {value}")
    return value


def seconds(value: float, what: str) -> float:
    """Return a duration of at most a day."""
    return number(value, what, low=0, high=MAX_SECONDS)


def stamp(value: float, what: str) -> float:
    """Return a time stamp, in Unix seconds."""
    return number(value, what, low=0, high=MAX_STAMP_SECONDS)


def count(value: int, what: str, *, low: int = 0, high: float = math.inf) -> int:
    """Return an integer in `low..high`."""
    require(low <= value <= high, f"{what} must be{_range(low, high)}, not {value}")
    return value


def text(value: str, what: str, *, max_chars: int = MAX_NAME_CHARS, min_chars: int = 0) -> str:
    """Return a printable text (it goes to logs and terminals) of `min_chars..max_chars` characters."""
    require(min_chars <= len(value) <= max_chars, f"{what} must have {min_chars}..{max_chars} characters")
    require(value.isprintable(), f"{what} must be printable")
    return value


def member(enum_class: type[Member], value: int, what: str) -> Member:
    """Return the enum member with the schema's number."""
    try:
        return enum_class(value)
    except ValueError:
        raise InvalidRequest(f"{what} has no meaning for number {value}") from None


def known_members(enum_class: type[Member], values: Iterable[int], what: str) -> tuple[Member, ...]:
    """Return the members of a list of offers, each once, in the given order.

    Numbers of a newer schema are left out: an offer that this end does not know is one it will not take.

    Raises:
        InvalidRequest: Nothing is left, or the list is absurdly long.
    """
    numbers = list(values)
    require(len(numbers) <= MAX_LIST_ITEMS, f"{what} lists {len(numbers)} items, the cap is {MAX_LIST_ITEMS}")
    by_number = {item.value: item for item in enum_class}
    members = tuple(dict.fromkeys(by_number[item] for item in numbers if item in by_number))
    require(bool(members), f"{what} lists nothing that is known here")
    return members


def json_object(value: str, what: str) -> str:
    """Return a text of bounded length that holds a JSON object."""
    require(len(value) <= MAX_CONFIG_CHARS, f"{what} has {len(value)} characters, the cap is {MAX_CONFIG_CHARS}")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{what} must be JSON") from None
    require(isinstance(parsed, dict), f"{what} must be a JSON object")
    return value


def same_version(version: int, *, other_end: str, this_end: str) -> None:
    """Compare the other end's protocol version with this one's.

    Raises:
        VersionMismatch: They differ; the text says which end is older and what to do, on either terminal.
    """
    if version != PROTOCOL_VERSION:
        older = other_end if version < PROTOCOL_VERSION else this_end
        raise VersionMismatch(
            f"{other_end} speaks protocol version {version}, {this_end} speaks {PROTOCOL_VERSION}: "
            f"install the same ecdiff release on both ends ({older} is older)"
        )


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" at least {low}"
    return f" in {low}..{high}"
