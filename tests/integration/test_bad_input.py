"""What a user can get wrong: one plain line on stderr that says what to do, exit code 1 or 2, and nothing written."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.cloud import Cloud, RunEdge, StartCloud
from harness.model_variants import with_latent_channels
from harness.programs import Finished, Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL, LATENTS_SHAPE
from harness.scripted_cloud import Send, scripted_cloud
from wire.messages import Description, Open

FAILED, BAD_USAGE = 1, 2


def check_plain_error(done: Finished, returncode: int, *pieces: str) -> None:
    assert done.returncode == returncode, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for piece in pieces:
        assert piece in line


@pytest.fixture
def generate(run_edge: RunEdge, cloud: Cloud, tmp_path: Path) -> Callable[..., Finished]:
    """Runs `edge-client generate` against the shared cloud; checks that it leaves no file behind."""

    def run(*arguments: str | Path, prompt: str = "a cat", address: str | None = None) -> Finished:
        before = sorted(tmp_path.rglob("*"))
        whole = ["generate", prompt, "--cloud", address or cloud.address]
        if "--edge-model" not in arguments:
            whole += ["--edge-model", str(EDGE_MODEL)]
        done = run_edge(*whole, *arguments)
        assert sorted(tmp_path.rglob("*")) == before
        return done

    return run


BAD_OPTIONS = {
    "unknown-mode": (["--mode", "magic"], ["--mode", "'magic'", "ecdiff"]),
    "handoff-beyond-the-last-step": (["--handoff-step", "51"], ["handoff_step must lie in 0..50", "51"]),
    "negative-handoff-step": (["--handoff-step", "-1"], ["handoff_step must lie in 0..50", "-1"]),
    "warm-up-of-1": (["--warmup-steps", "1"], ["warmup_steps must be at least 2", "1"]),
    "negative-skip-interval": (["--skip-interval", "-1"], ["skip_interval", "-1"]),
    "no-steps": (["--num-inference-steps", "0"], ["num_inference_steps must be at least 1"]),
    "unknown-predictor": (["--predictor", "oracle"], ["oracle", "ecdiff", "linear", "reuse"]),
    "unknown-refresh": (["--refresh", "never"], ["never", "fixed"]),
    "tolerance-without-meaning": (
        ["--mode", "ecdiff", "--tolerance", "0.1"],
        ["tolerance means nothing to refresh fixed"],
    ),
    "negative-tolerance": (["--refresh", "easycache", "--tolerance", "-1"], ["tolerance must be", "-1"]),
    "tolerance-that-is-no-number": (["--refresh", "easycache", "--tolerance", "nan"], ["tolerance must be", "nan"]),
    "list-without-warm-up": (["--real-steps", "0,3,6"], ["must begin with 0 and 1, not with 0, 3"]),
    "list-beyond-the-last-step": (["--real-steps", "0,1,50"], ["real_steps must lie in 0..49", "50"]),
    "unsorted-list": (["--real-steps", "0,1,9,8"], ["real_steps must rise"]),
    "no-list": (["--refresh", "listed"], ["real_steps", "nothing"]),
    "unknown-scheduler": (["--scheduler", "heun"], ["heun", "ddim"]),
    "malformed-split": (["--mode", "split", "--steps", "40;10"], ["40,10", "40;10"]),
    "split-and-handoff": (["--mode", "split", "--steps", "4,1", "--handoff-step", "3"], ["--steps"]),
    "option-of-another-mode": (["--mode", "cloud", "--warmup-steps", "5"], ["warmup_steps", "ecdiff"]),
    "cloud-calls-too-few": (["--handoff-step", "37", "--max-cloud-calls", "3"], ["max_cloud_calls is 3"]),
    "endless-guidance": (["--guidance-scale", "nan"], ["guidance_scale"]),
    "rescale-above-1": (["--guidance-rescale", "1.5"], ["guidance_rescale must lie in 0..1"]),
    "negative-seed": (["--seed", "-1"], ["seed"]),
    "no-pictures": (["--num-images", "0"], ["num_images"]),
    "height-of-zero": (["--height", "0"], ["height", "0"]),
    "too-many-steps": (["--num-inference-steps", "1001", "--mode", "cloud"], ["num_inference_steps", "1001"]),
    "too-many-pictures": (["--num-images", "9"], ["num_images must lie in 1..8", "9"]),
    "too-large": (["--height", "4096", "--width", "4096"], ["height must lie in 1..2048", "4096"]),
    "cloud-and-cloud-model": (["--cloud-model", "somewhere"], ["--cloud-model"]),
    "token-file-missing": (["--auth-token-file", "missing.token"], ["missing.token"]),
}


@pytest.mark.parametrize(("arguments", "pieces"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_option_is_bad_usage(generate: Callable[..., Finished], arguments: list[str], pieces: list[str]) -> None:
    check_plain_error(generate(*arguments), BAD_USAGE, *pieces)


def test_empty_prompt_is_bad_usage(generate: Callable[..., Finished]) -> None:
    check_plain_error(generate(prompt="  "), BAD_USAGE, "the prompt is empty")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0", "127.0.0.1:99999", ":50051", "127.0.0.1:http", ""])
def test_bad_address_is_bad_usage(run_edge: RunEdge, address: str) -> None:
    done = run_edge("generate", "a cat", "--edge-model", EDGE_MODEL, "--cloud", address)
    check_plain_error(done, BAD_USAGE, "--cloud must be HOST:PORT", repr(address))


def test_prompt_of_endless_length_is_bad_usage(generate: Callable[..., Finished]) -> None:
    check_plain_error(generate(prompt="cat " * 600), BAD_USAGE, "prompt", "2000")


def test_mode_without_a_cloud_refuses_one(generate: Callable[..., Finished]) -> None:
    check_plain_error(generate("--mode", "edge"), BAD_USAGE, "mode edge uses no cloud")


NOISES = {
    "of-another-shape": np.zeros((1, 4, 8, 8), np.float32),
    "of-whole-numbers": np.zeros(LATENTS_SHAPE, np.int64),
    "with-nan": np.full(LATENTS_SHAPE, np.nan, np.float32),
}


# What only the loaded model can say is no bad usage: the same words fit another model.
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_initial_latents_that_do_not_fit_the_model_fail(
    generate: Callable[..., Finished], tmp_path: Path, noise: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    np.save(tmp_path / "noise.npy", noise)
    check_plain_error(generate("--initial-latents", tmp_path / "noise.npy"), FAILED, "noise.npy")


def test_size_that_the_model_cannot_do_fails(generate: Callable[..., Finished]) -> None:
    check_plain_error(generate("--height", "100"), FAILED, "multiples of 8", "100")


def test_offload_without_a_gpu_fails(generate: Callable[..., Finished]) -> None:
    check_plain_error(generate("--device", "cpu", "--offload", "model"), FAILED, "--offload model", "leave it out")


def test_initial_latents_that_are_no_array_fail(generate: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "noise.npy").write_text("hello")
    check_plain_error(generate("--initial-latents", tmp_path / "noise.npy"), FAILED, "is not a .npy array")


# ------------------------------------------------------------------------------ models


def test_missing_model_folder_fails(generate: Callable[..., Finished], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    check_plain_error(generate("--edge-model", missing), FAILED, "there is no model folder", str(missing))


def test_unknown_hub_id_fails(generate: Callable[..., Finished]) -> None:
    check_plain_error(generate("--edge-model", "nobody/nothing"), FAILED, "nobody/nothing", "check the name")


def test_folder_that_is_no_model_is_named(generate: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_plain_error(generate("--edge-model", tmp_path / "empty"), FAILED, "model_index.json")


def test_missing_cloud_model_is_told_in_the_services_words(run_edge: RunEdge, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    done = run_edge("generate", "a cat", "--edge-model", EDGE_MODEL, "--cloud-model", missing)
    check_plain_error(done, FAILED, "there is no model folder", missing)


def test_pair_that_shares_no_latents_is_refused(generate: Callable[..., Finished], tmp_path: Path) -> None:
    variant = with_latent_channels(EDGE_MODEL, tmp_path / "eight", 8)
    done = generate("--edge-model", variant)
    check_plain_error(done, FAILED, "do not share latents", "latent channels is 4 in the cloud, 8 on the edge")


# ------------------------------------------------------------------------------ clouds


def test_nobody_at_the_address_fails(generate: Callable[..., Finished]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        check_plain_error(generate(address=address), FAILED, "no cloud service answers", address, "cloud-service serve")


def test_server_of_something_else_fails(generate: Callable[..., Finished], cloud: Cloud) -> None:
    done = generate(address=cloud.metrics_address)
    check_plain_error(done, FAILED, cloud.metrics_address, "check the address")


@pytest.mark.asyncio(loop_scope="session")
async def test_cloud_of_another_protocol_version_fails(
    generate: Callable[..., Finished], description: Description
) -> None:
    async def never(opening: Open, send: Send) -> None:
        raise AssertionError("a stream was opened in spite of the version")

    async with scripted_cloud(replace(description, protocol_version=2), never) as address:
        done = await asyncio.to_thread(generate, address=address)
    check_plain_error(done, FAILED, "protocol version 2", "version 1", "upgrade")


@pytest.mark.parametrize("given", ["wrong", None])
def test_wrong_or_missing_token_fails(
    generate: Callable[..., Finished], start_cloud: StartCloud, tmp_path: Path, given: str | None
) -> None:
    right, wrong = tmp_path / "right.token", tmp_path / "wrong.token"
    right.write_text("a-secret-of-the-service\n")
    wrong.write_text("a-guess\n")
    cloud = start_cloud("--auth-token-file", str(right))
    arguments = ["--auth-token-file", str(wrong)] if given else []
    done = generate(*arguments, address=cloud.address)
    check_plain_error(done, FAILED, "token", "--auth-token-file")
    assert "secret" not in done.stderr


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize("option", ["-o", "--report", "--save-latents", "--metrics-file"])
def test_missing_output_folder_fails_before_any_work(
    generate: Callable[..., Finished], cloud: Cloud, tmp_path: Path, option: str
) -> None:
    before = cloud.nfe()
    done = generate(option, tmp_path / "missing" / "out.png")
    check_plain_error(done, FAILED, "cannot write", "there is no folder")
    assert cloud.nfe() == before


def test_full_disk_fails_and_leaves_nothing_behind(run_edge: RunEdge, cloud: Cloud, tmp_path: Path) -> None:
    # The limit on a file's size stands for the full disk: the write fails half-way in just the same place.
    done = run_edge(
        *("generate", "a cat", "--mode", "ecdiff", "--edge-model", EDGE_MODEL, "--cloud", cloud.address),
        file_limit_bytes=4096,
    )
    check_plain_error(done, FAILED, "cannot write out.png", "free some space")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ the service, and fresh interpreters


def test_port_in_use_fails(programs: Programs, cloud: Cloud) -> None:
    arguments = ("--model", str(CLOUD_MODEL), "--metrics-listen", "127.0.0.1:0", "--listen", cloud.address)
    done = programs.forked("cloud_service", "serve", *arguments).wait()
    check_plain_error(done, FAILED, cloud.address, "in use")


def test_metrics_port_in_use_fails(programs: Programs, cloud: Cloud) -> None:
    arguments = ("--model", str(CLOUD_MODEL), "--listen", "127.0.0.1:0", "--metrics-listen", cloud.metrics_address)
    done = programs.forked("cloud_service", "serve", *arguments).wait()
    check_plain_error(done, FAILED, cloud.metrics_address, "in use")


def test_fresh_interpreters_say_the_same(programs: Programs, cloud: Cloud, tmp_path: Path) -> None:
    edge = ("edge_client", "generate", "a cat", "--edge-model", str(EDGE_MODEL), "--cloud", cloud.address)
    runs = [
        (programs.cold(*edge, "--height", "100", folder=tmp_path), FAILED, "multiples of 8"),
        (programs.cold("edge_client", "paint", folder=tmp_path), BAD_USAGE, "paint"),
        (programs.cold("cloud_service", "serve", "--listen", "nowhere"), BAD_USAGE, "HOST:PORT"),
        (programs.cold("edge_client", "probe", "--cloud", "127.0.0.1:1"), FAILED, "no cloud service answers"),
    ]
    for program, returncode, piece in runs:
        check_plain_error(program.wait(), returncode, piece)
    assert list(tmp_path.iterdir()) == []
