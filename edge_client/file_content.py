"""A file's content in the place of its path: an agent opens no file of those who ask it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """A file that its owner has read; errors and reports call it what its owner does.

    Attributes:
        path: As its owner calls it.
        content: All of it.
    """

    path: str
    content: bytes

    @classmethod
    def of(cls, file: InputFile) -> FileContent:
        """Read a file where that was not done yet.

        Raises:
            OSError: It cannot be read.
        """
        return file if isinstance(file, FileContent) else cls(path=str(file), content=file.read_bytes())

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePath(self.path).name

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self.content

    def __str__(self) -> str:
        return self.path


InputFile: TypeAlias = Path | FileContent
