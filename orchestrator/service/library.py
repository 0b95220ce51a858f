"""The plan files of a folder, read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.searched_plan import PlanFile, read_plan_file
from orchestrator.service.config import LOGGER_NAME
from wire.fleet_messages import PlanFileStatus

_log = logging.getLogger(LOGGER_NAME)
MAX_FILES = 1024
MAX_FILE_BYTES = 16 * 2**20
_MAX_PROBLEM_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One file as it was read last; `stamp` is its time and size."""

    stamp: tuple[int, int]
    found: PlanFile | None
    problem: str


class PlanLibrary:
    """Knows the `*.json` of a folder.

    Args:
        folder: May be empty; files come and go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, _Entry] = {}
        self._folder_problem = ""

    def refresh(self) -> None:
        """Read what is new or has changed; what cannot be used is one line in the log, once."""
        seen = dict(self._stamps())
        for name in self._entries.keys() - seen.keys():
            _log.info("plan file gone", extra={"file": name})
            del self._entries[name]
        for name, stamp in seen.items():
            known = self._entries.get(name)
            if known is None or known.stamp != stamp:
                self._entries[name] = self._read(name, stamp)

    def find(
        self, *, cloud_fingerprint: str, edge_fingerprint: str, scheduler: str, num_steps: int, guidance_scale: float
    ) -> tuple[str, PlanFile] | None:
        """Return name and content of the file for a pair, scheduler and step count; None where there is none.

        Of several it is the one whose guidance is closest.
        """
        wanted = (cloud_fingerprint, edge_fingerprint, scheduler, num_steps)
        fitting = [
            (abs(file.guidance_scale - guidance_scale), name, file)
            for name, file in self._usable()
            if (file.cloud_fingerprint, file.edge_fingerprint, file.scheduler, file.num_inference_steps) == wanted
        ]
        if not fitting:
            return None
        _, name, file = min(fitting, key=lambda each: each[:2])
        return name, file

    def knows_pair(self, cloud_fingerprint: str, edge_fingerprint: str) -> bool:
        """Whether any plan was searched for a pair."""
        return any(
            (file.cloud_fingerprint, file.edge_fingerprint) == (cloud_fingerprint, edge_fingerprint)
            for _, file in self._usable()
        )

    def status(self) -> tuple[PlanFileStatus, ...]:
        """Return what there is, by name."""
        return tuple(_status(name, entry) for name, entry in sorted(self._entries.items()))

    def _usable(self) -> Iterator[tuple[str, PlanFile]]:
        return ((name, each.found) for name, each in self._entries.items() if each.found is not None)

    def _stamps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        try:
            paths = sorted(self._folder.glob("[!.]*.json"))[:MAX_FILES]
        except OSError as error:
            paths = []
            problem = f"{self._folder}: {error.strerror}"
        else:
            problem = "" if self._folder.is_dir() else f"{self._folder} is no folder"
        if problem and problem != self._folder_problem:
            _log.warning("the plans folder cannot be read", extra={"problem": problem})
        self._folder_problem = problem
        for path in paths:
            try:
                facts = path.stat()
            except OSError:  # gone since it was listed
                continue
            yield path.name, (facts.st_mtime_ns, facts.st_size)

    def _read(self, name: str, stamp: tuple[int, int]) -> _Entry:
        try:
            if stamp[1] > MAX_FILE_BYTES:
                raise ValueError(f"plan file {name} has {stamp[1]} bytes, the cap is {MAX_FILE_BYTES}")
            found = read_plan_file(self._folder / name)
        except (OSError, ValueError) as error:
            problem = " ".join(str(error).split())[:_MAX_PROBLEM_CHARS]
            _log.warning("a plan file is not used", extra={"file": name, "problem": problem})
            return _Entry(stamp=stamp, found=None, problem=problem)
        _log.info("plan file read", extra={"file": name, "plans": len(found.plans)})
        return _Entry(stamp=stamp, found=found, problem="")


def _status(name: str, entry: _Entry) -> PlanFileStatus:
    found = entry.found
    if found is None:
        return PlanFileStatus(name=name, problem=entry.problem)
    return PlanFileStatus(
        name=name,
        cloud_fingerprint=found.cloud_fingerprint,
        edge_fingerprint=found.edge_fingerprint,
        scheduler=found.scheduler,
        num_inference_steps=found.num_inference_steps,
        guidance_scale=found.guidance_scale,
        num_plans=len(found.plans),
    )
