"""The file of bearer tokens: one a line, all of them good, so that a new one comes into use before the old one ends."""

from __future__ import annotations

from pathlib import Path

from wire.watched import Watched


class TokenFile:
    """The tokens of a file, read again when it changes.

    Args:
        path: Where it is; empty lines and blanks around a token do not count.

    Raises:
        OSError: It cannot be read.
        ValueError: It is empty, or holds what cannot travel as a token.
    """

    def __init__(self, path: Path) -> None:
        self._watched = Watched(f"token file {path}", (path,), lambda: _read(path))

    def accepted(self) -> tuple[str, ...]:
        """Return the tokens that a service takes: all of them."""
        return self._watched.now()

    def sent(self) -> str:
        """Return the token that a client shows: the first."""
        return self._watched.now()[0]


def _read(path: Path) -> tuple[str, ...]:
    """Return the tokens.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has none, or a line is none; the text names the line and never shows it.
    """
    tokens = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        token = line.strip()
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError(f"line {number} of the token file {path} is no token: one a line, ASCII, without blanks")
        if token:
            tokens.append(token)
    if not tokens:
        raise ValueError(f"the token file {path} is empty")
    return tuple(tokens)
