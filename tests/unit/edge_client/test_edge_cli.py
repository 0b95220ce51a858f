"""The command line: what it refuses at once, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from edge_client import cli
from edge_client.command_line import make_request
from edge_client.outcome import plain_text
from wire.errors import LimitExceeded

BAD_USAGE, INTERRUPTED = 2, 130

WRONG = {
    "address": (["generate", "x", "--cloud", "nowhere"], "--cloud must be HOST:PORT"),
    "address-of-probe": (["probe", "--cloud", "nowhere"], "--cloud must be HOST:PORT"),
    "probe-of-nothing": (["probe"], "--cloud"),
    "steps-of-another-mode": (["generate", "x", "--mode", "cloud", "--steps", "40,10"], "--steps is mode split's"),
    "plan": (["generate", "x", "--handoff-step", "51"], "handoff_step must lie in 0..50"),
    "guidance": (["compare", "x", "y", "--guidance-scale", "nan"], "guidance_scale"),
    "cloud-in-mode-edge": (["generate", "x", "--mode", "edge", "--cloud", "a:1"], "mode edge uses no cloud"),
    "two-cloud-models": (["generate", "x", "--cloud", "a:1", "--cloud-model", "m"], "leave --cloud-model out"),
    "height": (["generate", "x", "--height", "100000000"], "height must lie in 1..2048"),
    "pictures": (["generate", "x", "--num-images", "100000000"], "num_images must lie in 1..8"),
    "steps": (["generate", "x", "--num-inference-steps", "1000000000"], "num_inference_steps must be at most 1000"),
    "silence-of-0": (["generate", "x", "--cloud-timeout", "0"], "--cloud-timeout"),
    "silence-below-0": (["generate", "x", "--cloud-timeout", "-1"], "--cloud-timeout"),
    "silence-nan": (["generate", "x", "--cloud-timeout", "nan"], "--cloud-timeout"),
    "silence-inf": (["generate", "x", "--cloud-timeout", "inf"], "--cloud-timeout"),
    "jpeg": (["generate", "x", "-o", "j.jpg"], "must end with .png or .mp4 or .gif, not 'j.jpg'"),
    "jpeg-grid": (["compare", "x", "-o", "j.jpg"], "must end with .png, not 'j.jpg'"),
    "no-name": (["generate", "x", "-o", ""], "the name is empty"),
    "no-name-of-report": (["generate", "x", "--report", ""], "the name is empty"),
    "one-file-twice": (["generate", "x", "-o", "a.png", "--report", "./a.png"], "a.png is named for two outputs"),
    "one-of-the-pictures": (["generate", "x", "--num-images", "2", "--report", "out-1.png"], "for two outputs"),
    "token-in-the-clear": (
        ["generate", "x", "--cloud", "10.1.1.1:3", "--auth-token-file", "token"],
        "the token would travel unencrypted",
    ),
    "prompt-of-another-encoding": (["generate", "caf\udce9"], "prompt is not UTF-8 text"),
    "unknown-option": (["generate", "x", "--colour"], "--colour"),
}


@pytest.mark.parametrize(("arguments", "piece"), WRONG.values(), ids=WRONG)
def test_mistake_on_the_command_line_is_one_plain_line(
    arguments: list[str],
    piece: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edge-client", *arguments])
    assert cli.run() == BAD_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert piece in line
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    # Surrogates do not travel in JSON's text, so the list goes without them.
    lines = [arguments for arguments, _ in WRONG.values() if not any("\udce9" in text for text in arguments)]
    code = (
        "import json, sys\nfrom edge_client.cli import run\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['edge-client', *arguments]\n    assert run() == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(lines)], cwd=tmp_path, timeout=60, check=True)


def test_probe_says_what_is_true_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["edge-client", "probe", "--help"])
    assert cli.run() == 0
    text = capsys.readouterr().out
    assert "[required]" in text
    assert "is started" not in text
    assert "--cloud-timeout" not in text


def test_guidance_that_nobody_named_is_left_to_the_model() -> None:
    options = {"steps": None, "edge_model": None, "guidance_scale": None}
    assert make_request("x", "edge", options).guidance_scale is None
    assert make_request("x", "edge", options | {"guidance_scale": 2.0}).guidance_scale == 2.0


# ------------------------------------------------------------------------------ failures


def test_memory_that_is_not_there_is_said_plainly() -> None:
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**55, dtype=torch.float32)
    with pytest.raises(MemoryError) as pythons:
        bytearray(2**62)
    for caught in (torchs, pythons):
        text = plain_text(caught.value)
        assert text is not None
        assert text.startswith("out of memory: ")


def test_mistakes_of_ours_keep_their_traceback() -> None:
    assert plain_text(KeyError("x")) is None
    assert plain_text(RuntimeError("shapes do not match")) is None


def test_error_of_the_cloud_names_the_request() -> None:
    error = LimitExceeded("height is 4096")
    error.add_note("request abc")
    assert plain_text(error) == "height is 4096 (request abc)"


# ------------------------------------------------------------------------------ interrupts


def test_interrupt_before_the_command_line_is_loaded() -> None:
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "edge_client.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from edge_client.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "error: interrupted\n")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="sees by /proc what is being imported")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_torch_is_imported_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_client", "generate", "x", "--mode", "edge"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "libtorch" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.005)
        sent = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - sent < 10
    assert process.returncode == INTERRUPTED
    assert errors == "error: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_interrupt_that_a_library_swallows_still_ends_the_command(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from edge_client import interrupts
interrupts.install()
class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
sys.unraisablehook = lambda found: None
del [Callback()][0]
from edge_client.__main__ import main
sys.argv = ["edge-client", "generate", "x", "--mode", "edge", "-o", {str(tmp_path / "out.png")!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []
