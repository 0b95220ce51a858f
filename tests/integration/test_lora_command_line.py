"""`--lora` on either side, over real gRPC, and what is said where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.parity import BOUND
from harness.agent import StartAgent, StartCommand
from harness.cloud import RunEdge, StartCloud
from harness.programs import Finished
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.tiny_lora import write_lora

REQUEST = ("--num-inference-steps", "6", "--seed", "3", "--quiet")


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return one LoRA for the large model and one for the small one."""
    folder = tmp_path_factory.mktemp("loras")
    return (
        write_lora(CLOUD_MODEL, folder / "cloud.safetensors", with_text_encoder=True),
        write_lora(EDGE_MODEL, folder / "edge.safetensors"),
    )


def latents_of(done: Finished, path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert (done.returncode, done.stderr) == (0, "")
    final: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = np.load(path)
    return final


def test_both_models_of_a_run_take_their_own(
    run_edge: RunEdge, start_cloud: StartCloud, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    large, small = loras
    models = ("--cloud-model", CLOUD_MODEL, "--edge-model", EDGE_MODEL)

    def split(*arguments: str | Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        done = run_edge("generate", "a cat", "--mode", "split", *arguments, *REQUEST, "--save-latents", "final.npy")
        return latents_of(done, tmp_path / "final.npy")

    plain = split(*models)
    with_large = split(*models, "--cloud-lora", f"{large}:0.5")
    with_both = split(*models, "--cloud-lora", f"{large}:0.5", "--lora", small)
    assert np.abs(with_large - plain).max() > 10 * BOUND
    assert np.abs(with_both - with_large).max() > 10 * BOUND
    served = start_cloud("--lora", f"{large}:0.5")
    elsewhere = split("--cloud", served.address, "--edge-model", EDGE_MODEL, "--lora", small)
    np.testing.assert_allclose(elsewhere, with_both, atol=1e-5)


def test_an_agent_has_what_it_was_started_with(
    start_agent: StartAgent, start_command: StartCommand, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    _, small = loras
    agent = start_agent("--lora", small)
    for name, more in (("own", ()), ("named", ("--lora", f"{small}:1")), ("other", ("--lora", f"{small}:0.5"))):
        outputs = ("-o", f"{name}.png", "--report", f"{name}.json", "--save-latents", f"{name}.npy")
        edge_model = ("--edge-model", EDGE_MODEL)
        words = ("--mode", "edge", *edge_model, *more, "--num-inference-steps", "6", "--seed", "3", *outputs)
        done = start_command(agent, "generate", "a cat", *words).wait()
        assert done.returncode == 0, done.stderr
    reports = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "named", "other")}
    assert [reports[name]["agent"] for name in reports] == [agent.address, agent.address, None]
    assert f"the agent was started with --lora {small}:1" in reports["other"]["warnings"][0]
    own, named, other = (np.load(tmp_path / f"{name}.npy") for name in reports)
    np.testing.assert_array_equal(own, named)
    assert np.abs(own - other).max() > 10 * BOUND


def test_what_does_not_fit_is_one_plain_line(
    run_edge: RunEdge, start_cloud: StartCloud, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    large, small = loras
    edge = ("generate", "a cat", "--edge-model", EDGE_MODEL, "--no-agent", "--quiet")
    other = write_lora(EDGE_MODEL, tmp_path / "other.safetensors", with_text_encoder=True)
    other.write_bytes(other.read_bytes()[:100])
    cases: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("--mode", "edge", "--lora", tmp_path / "missing.safetensors"), 2, "there is no LoRA file"),
        (("--mode", "edge", "--lora", f"{small}:inf"), 2, "must be a finite number, not inf"),
        (("--mode", "edge", "--lora", large), 1, "it is for another base"),
        (("--mode", "edge", "--lora", other), 1, "other.safetensors is damaged"),
        (("--mode", "edge", "--cloud-lora", large), 2, "mode edge uses no cloud: leave --cloud, --cloud-model and"),
        (("--cloud", "127.0.0.1:1", "--cloud-lora", large), 2, "--cloud uses the model that is served there"),
        (("--cloud-model", CLOUD_MODEL, "--cloud-lora", small), 1, "it is for another base"),
    ]
    for arguments, code, piece in cases:
        done = run_edge(*edge, *arguments)
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert piece in line
        assert done.returncode == code
