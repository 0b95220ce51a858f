"""What a search has measured so far, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.search.candidate import Candidate
from orchestrator.searched_plan import write_atomically

FORMAT = "ecdiff-search-1"


def candidate_key(candidate: Candidate) -> str:
    """Return what names a candidate's results."""
    return json.dumps(asdict(candidate), sort_keys=True, separators=(",", ":"))


@dataclass(kw_only=True)
class Journal:
    """Results by key, on disk after each.

    Attributes:
        path: The file beside the plan file.
        settings_hash: Of everything that a result depends on but its key.
        results: What is known; None stands for infinity.
        started_anew: Whether there was a file that could not be gone on from.
    """

    path: Path
    settings_hash: str
    results: dict[str, list[float | None]]
    started_anew: bool = False

    @classmethod
    def open(cls, path: Path, settings: Any) -> Journal:
        """Go on from a file, or begin one; that of another search is begun anew.

        Args:
            path: The file.
            settings: What results depend on, as JSON can say it.

        Raises:
            OSError: If it cannot be read or written.
        """
        settings_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        known = _read(path) if path.exists() else None
        if known is not None and known["settings_hash"] == settings_hash:
            return cls(path=path, settings_hash=settings_hash, results=known["results"])
        journal = cls(path=path, settings_hash=settings_hash, results={}, started_anew=path.exists())
        journal.write()
        return journal

    def remember(self, key: str, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        """Return a result, measured only if it is not known."""
        if key not in self.results:
            self.results[key] = [each if math.isfinite(each) else None for each in measure()]
            self.write()
        return tuple(math.inf if each is None else each for each in self.results[key])

    def write(self) -> None:
        """Put everything on disk."""
        content = {"format": FORMAT, "settings_hash": self.settings_hash, "results": self.results}
        write_atomically(self.path, json.dumps(content))


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a journal; None if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None
