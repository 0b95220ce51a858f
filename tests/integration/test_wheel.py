"""What `pip install` gives to somebody who has no checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_finds_the_bundled_pair_and_generates(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("ecdiff-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    program = "import models, edge_client.__main__ as m; assert 'site' in models.__file__, models.__file__; m.main()"
    arguments = ["generate", "red apple, fluent style", "--mode", "edge", "--num-inference-steps", "2", "-o", "a.png"]
    subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        timeout=300,
    )
    assert (tmp_path / "a.png").stat().st_size > 0
