"""A folder of plan files: read, read again, told of."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from plan_files import FILE

from orchestrator.service import library as module
from orchestrator.service.library import PlanLibrary


def found(library: PlanLibrary, scheduler: str = "ddim") -> str | None:
    """Return the command that made the file which is found: it tells versions apart."""
    library.refresh()
    answer = library.find(
        cloud_fingerprint=FILE.cloud_fingerprint,
        edge_fingerprint=FILE.edge_fingerprint,
        scheduler=scheduler,
        num_steps=FILE.num_inference_steps,
        guidance_scale=2.0,
    )
    return None if answer is None else answer[1].command


@pytest.fixture(autouse=True)
def _all_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator")


def test_files_that_come_change_and_go_are_noticed(tmp_path: Path) -> None:
    library = PlanLibrary(tmp_path)
    assert found(library) is None
    FILE.write(tmp_path / "a.json")
    assert found(library) == FILE.command
    replace(FILE, command="another").write(tmp_path / "a.json")
    assert found(library) == "another"
    (tmp_path / "a.json").unlink()
    assert found(library) is None
    assert library.status() == ()


def test_a_file_is_read_once_while_it_does_not_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FILE.write(tmp_path / "a.json")
    library = PlanLibrary(tmp_path)
    for _ in range(3):
        library.refresh()
    assert [record.message for record in caplog.records] == ["plan file read"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "ecdiff-plans-1"}', b"[" * 100_000])
def test_a_broken_file_is_one_line_and_the_others_go_on(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FILE.write(tmp_path / "good.json")
    (tmp_path / "bad.json").write_bytes(content)
    library = PlanLibrary(tmp_path)
    assert found(library) == FILE.command
    assert found(library) == FILE.command
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    by_name = {each.name: each for each in library.status()}
    assert by_name["bad.json"].problem
    assert "\n" not in by_name["bad.json"].problem
    assert by_name["good.json"].num_plans == len(FILE.plans)
    replace(FILE, scheduler="unipc").write(tmp_path / "bad.json")
    assert found(library, "unipc") is not None


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no plan")
    (tmp_path / ".hidden.json").write_text("an unfinished write")
    library = PlanLibrary(tmp_path)
    library.refresh()
    assert library.status() == ()


def test_a_file_too_large_to_be_one_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FILE.write(tmp_path / "a.json")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    library = PlanLibrary(tmp_path)
    assert found(library) is None
    assert "the cap is 100" in library.status()[0].problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0)
    try:
        library = PlanLibrary(tmp_path)
        library.refresh()
        library.refresh()
    finally:
        tmp_path.chmod(0o700)
    assert len(caplog.records) == 1


def test_a_folder_that_is_gone_is_told_once_and_may_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "plans"
    library = PlanLibrary(folder)
    assert found(library) is None
    assert found(library) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    folder.mkdir()
    FILE.write(folder / "a.json")
    assert found(library) == FILE.command
