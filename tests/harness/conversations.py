"""Conversations that no client should hold with a cloud, and how each may end."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

OK = "OK"
REFUSALS = frozenset({"InvalidRequest", "InvalidTensor", "CorruptTensor", "ProtocolError", "LimitExceeded"})
ANYTHING = REFUSALS | {OK, "VersionMismatch", "UnknownModel", "DeadlineExceeded", "ModelError"}
"""What a stream may end with that is neither the service's fault nor another client's."""

PROTOCOL = frozenset({"ProtocolError"})
_LATER = frozenset({"ModelError", "DeadlineExceeded"})
_MAX_PENDING_CORRECTIONS = 4


class Kind(enum.Enum):
    """What something that a client says does to the conversation."""

    OPEN = enum.auto()
    HARMLESS = enum.auto()
    HAND_OFF = enum.auto()
    CORRECT = enum.auto()
    CLOSE = enum.auto()
    WRONG = enum.auto()  # a whole message that is wrong once the session is open
    UNREADABLE = enum.auto()  # wrong before anybody asks which message it is
    UNFINISHED = enum.auto()  # the beginning of a message in fragments
    UNCLEAR = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Said:
    """One thing that a client says.

    Attributes:
        kind: What it does.
        pieces: What goes on the wire, serialized.
        endings: How it may end the stream; a WRONG or UNREADABLE one does.
        pause_seconds: Before it is said.
    """

    kind: Kind
    pieces: tuple[bytes, ...]
    endings: frozenset[str] = frozenset()
    pause_seconds: float = 0.0


class Leaving(enum.Enum):
    """How a client leaves that has said everything."""

    CLOSE = enum.auto()
    HALF_CLOSE = enum.auto()
    CANCEL = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What one client says, and how it leaves."""

    said: tuple[Said, ...]
    leaving: Leaving

    @property
    def endings(self) -> frozenset[str]:
        """How the stream may end."""
        return _endings(self.said) | ({"Cancelled"} if self.leaving is Leaving.CANCEL else set())


def _endings(said: Iterable[Said]) -> frozenset[str]:
    """The conversation's rules once more, as far as they are clear without knowing how far the cloud is."""
    may: frozenset[str] = frozenset()
    is_open = unfinished = False
    num_corrections = 0
    for each in said:
        if each.kind is Kind.UNCLEAR or (unfinished and each.kind in (Kind.UNFINISHED, Kind.UNREADABLE)):
            return ANYTHING
        if unfinished:
            return may | PROTOCOL
        if each.kind is Kind.UNREADABLE:
            return may | each.endings
        if each.kind is Kind.UNFINISHED:
            unfinished = True
        elif not is_open:
            if each.kind is not Kind.OPEN:
                return may | PROTOCOL
            if each.endings - _LATER:
                return may | each.endings
            may, is_open = may | each.endings, True
        elif each.kind is Kind.OPEN:
            # It is looked at as a message of the session that is open, before its place in the conversation.
            return may | REFUSALS | each.endings
        elif each.kind is Kind.WRONG:
            return may | each.endings
        elif each.kind is Kind.CLOSE:
            return may | {OK}
        elif each.kind is Kind.CORRECT:
            num_corrections += 1
            may |= each.endings
            if num_corrections > _MAX_PENDING_CORRECTIONS:
                may |= {"LimitExceeded"}
    return may | ({OK} if is_open else PROTOCOL)
