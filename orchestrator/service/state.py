"""The file of estimates: written atomically, checked when it is read, set aside when it is damaged."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from orchestrator.searched_plan import write_atomically
from orchestrator.service.config import LOGGER_NAME
from orchestrator.service.estimates import NUM_KEPT, ReplicaEstimates

_log = logging.getLogger(LOGGER_NAME)
FORMAT = "ecdiff-estimates-1"
FILE_NAME = "estimates.json"
MAX_FILE_BYTES = 16 * 2**20
_MAX_TEXT_CHARS = 256
_MAX_REPORTS = 2**53


class StateFile:
    """Where the estimates outlive the process.

    Args:
        folder: Made where it is missing.

    Raises:
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._written = ""
        trial = folder / f".{FILE_NAME}.trial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Found out now, and not when the first estimates are lost.
            write_atomically(trial, "")
            trial.unlink()
        except OSError as error:
            raise OSError(f"the estimates cannot be kept in {folder}: {error.strerror}") from error

    def load(self, now_seconds: float) -> dict[str, ReplicaEstimates]:
        """Return what was saved; nothing where nothing was, or where the file is damaged: it is then set aside.

        Raises:
            OSError: The file is there and cannot be read or moved.
        """
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
            estimates = parse_estimates(self.path.read_text(encoding="utf-8"), now_seconds)
        except FileNotFoundError:
            return {}
        except (ValueError, OverflowError, RecursionError) as error:  # of JSON and UTF-8 too
            aside = self.path.with_name(f"{FILE_NAME}.damaged")
            self.path.replace(aside)
            problem = " ".join(str(error).split())[:200]
            _log.error(
                "the estimates are damaged: starting without", extra={"set_aside": str(aside), "problem": problem}
            )
            return {}
        return estimates

    def save(self, estimates: dict[str, ReplicaEstimates]) -> None:
        """Write the estimates if they have changed.

        Raises:
            OSError: They cannot be written.
        """
        text = format_estimates(estimates)
        if text != self._written:
            write_atomically(self.path, text)
            self._written = text


def format_estimates(estimates: dict[str, ReplicaEstimates]) -> str:
    """Return the text of the file."""
    replicas = {address: each.as_json() for address, each in estimates.items()}
    return json.dumps({"format": FORMAT, "replicas": replicas}, allow_nan=False) + "\n"


def parse_estimates(text: str, now_seconds: float) -> dict[str, ReplicaEstimates]:
    """Return the estimates in a text; samples from the future count as of now.

    Raises:
        ValueError: It is not what `format_estimates` makes.
        OverflowError: Nor is this: a number is too large for a float.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    replicas = content.get("replicas")
    if not isinstance(replicas, dict):
        raise ValueError("replicas must be an object")
    return {address: _estimates(address, each, now_seconds) for address, each in replicas.items()}


def _estimates(address: str, content: Any, now_seconds: float) -> ReplicaEstimates:
    names = set(ReplicaEstimates.QUANTITIES)
    if not isinstance(content, dict) or set(content) != {"fingerprint", "num_reports", *names}:
        raise ValueError(f"{address[:80]} has other fields")
    fingerprint, num_reports = content["fingerprint"], content["num_reports"]
    if not isinstance(fingerprint, str) or len(fingerprint) > _MAX_TEXT_CHARS:
        raise ValueError(f"the fingerprint of {address[:80]} is none")
    if type(num_reports) is not int or not 0 <= num_reports <= _MAX_REPORTS:
        raise ValueError(f"num_reports of {address[:80]} is no count")
    samples = {name: _samples(f"{name} of {address[:80]}", content[name], now_seconds) for name in names}
    return ReplicaEstimates(fingerprint, num_reports, **samples)


def _samples(what: str, content: Any, now_seconds: float) -> list[tuple[float, float]]:
    if not isinstance(content, list) or len(content) > NUM_KEPT:
        raise ValueError(f"{what} must be a list of at most {NUM_KEPT}")
    found = []
    for each in content:
        if not isinstance(each, list) or len(each) != 2 or not all(type(x) in (int, float) for x in each):
            raise ValueError(f"{what} must hold pairs of numbers")
        value, at_seconds = float(each[0]), float(each[1])
        if not (math.isfinite(value) and math.isfinite(at_seconds)):
            raise ValueError(f"{what} must hold finite numbers")
        if value < 0 and not what.startswith("log_ratio"):
            raise ValueError(f"{what} must not be negative")
        found.append((value, min(at_seconds, now_seconds)))
    return found
