"""Pictures, grids, files and the terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from edge_client.pictures import (
    check_outputs,
    check_writable,
    comparison_grid,
    encode_images,
    image_paths,
    save_images,
    save_latents,
    write_file,
)
from edge_client.recorder import Recorder, Snapshot
from edge_client.report import Report, make_report
from edge_client.request import GenerationRequest
from edge_client.terminal import ProgressDisplay, render, results_table
from orchestrator.link import LinkEstimate
from orchestrator.plan import MODES


def report(mode: str = "edge", prompt: str = "red apple") -> Report:
    return make_report(Recorder(request=GenerationRequest(prompt=prompt, mode=mode, seed=7), link=LinkEstimate()))


def test_png_carries_the_report_with_each_pictures_own_seed(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    names = save_images(encode_images(images, report()), tmp_path / "out.png")
    assert [Path(name).name for name in names] == ["out-0.png", "out-1.png"]
    seeds = [json.loads(Image.open(name).text["ecdiff"])["seed"] for name in names]
    assert seeds == [7, 8]


def test_one_picture_keeps_the_name_it_was_given() -> None:
    assert image_paths(Path("a/b.png"), 1) == [Path("a/b.png")]


def test_latents_are_saved_as_float32(tmp_path: Path) -> None:
    save_latents(tmp_path / "l.npy", np.ones((1, 2, 3, 4), np.float16))
    assert np.load(tmp_path / "l.npy").dtype == np.float32


def test_a_failed_write_leaves_the_old_file_and_keeps_the_new_content_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def full_on_the_first_disk(file: BinaryIO) -> None:
        if Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).parent == tmp_path:
            raise OSError(28, "No space left on device")
        file.write(b"new")

    with pytest.raises(OSError, match=r"cannot write .*out.bin: No space left on device; it was kept as ") as caught:
        write_file(target, full_on_the_first_disk)
    assert target.read_bytes() == b"old"
    assert Path(str(caught.value).rsplit(" ", 1)[1]).read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.bin"]


def test_a_missing_folder_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_writable(tmp_path / "missing" / "out.png")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_writable(tmp_path)


def test_two_outputs_never_share_a_file(tmp_path: Path) -> None:
    check_outputs([tmp_path / "a.png", tmp_path / "a.json"])
    with pytest.raises(ValueError, match="is named for two outputs"):
        check_outputs([tmp_path / "a.png", tmp_path / "sub" / ".." / "a.png"])


def test_grid_has_a_row_a_prompt_and_a_column_a_mode() -> None:
    (png,) = encode_images([Image.new("RGB", (64, 64), "red")], report())
    cells = [(png, report(mode)) for mode in MODES]
    one, two = comparison_grid([("a", cells)]), comparison_grid([("a", cells), ("b", cells)])
    assert one.width == two.width > 4 * 256
    assert two.height > 1.8 * one.height


def test_table_fits_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(results_table([report(mode) for mode in MODES]))
    lines = console.export_text().splitlines()
    console.file.close()
    assert any("cloud evaluations" in line for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_table_names_its_requests_and_takes_a_prompt_as_it_stands() -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    made = report(prompt="a [/b] sign")
    console.print(results_table([made]))
    text = console.export_text()
    console.file.close()
    assert f"request {made['request_id']}" in text
    assert '"a [/b] sign"' in text


def test_each_note_is_shown_once_with_the_request_that_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(quiet=False)
    recorder = Recorder(request=GenerationRequest(prompt="x"), link=LinkEstimate(), on_progress=display)
    display.request_id = recorder.request.request_id
    for line in ("the VAEs differ", "cloud lost", "the VAEs differ"):
        recorder.warn(line)
    assert capsys.readouterr().err.splitlines() == [
        f"note: {line} (request {recorder.request.request_id})" for line in ("the VAEs differ", "cloud lost")
    ]


def test_live_line_shows_sources_queue_and_traffic() -> None:
    snapshot = Snapshot(
        phase="cloud",
        num_inference_steps=5,
        step_sources="CCx",
        rtt_seconds=0.042,
        bytes_received=4096,
        bytes_sent=512,
        queue_position=2,
    )
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render("red apple", snapshot))
    text = console.export_text()
    console.file.close()
    for part in ("CCx··", "step 3/5", "2 ahead", "42.0 ms", "4.0 KiB"):
        assert part in text
