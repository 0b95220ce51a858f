"""`cloud-service serve` as a process: its two lines, its exit codes, its signals, its metrics."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from cloud_harness import CLOUD_MODEL, DATA, Stream, always, open_channel, opening
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.cloud import Cloud, StartCloud
from harness.model_variants import copy_model
from harness.programs import Finished, Programs
from harness.waiting import wait_until
from wire.errors import NotServing
from wire.messages import Close, HandedOff, Step
from wire.serving.address import Address

PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
TLS = ("--tls-cert", str(DATA / "tls" / "server.pem"), "--tls-key", str(DATA / "tls" / "server.key"))


def health_of(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="ecdiff.v1.CloudDenoiser"), timeout=10
        )
    return int(answer.status)


def log_of(cloud: Cloud) -> list[dict]:
    return [json.loads(line) for line in cloud.program.stderr.splitlines() if line.startswith("{")]


def one_plain_line(finished: Finished) -> str:
    lines = finished.stderr.splitlines()
    assert "Traceback" not in finished.stderr
    assert lines[-1].startswith("error: ")
    assert all(line.startswith("{") for line in lines[:-1])  # the log
    return lines[-1]


async def test_a_session_leaves_its_counts_in_the_metrics_and_one_line_without_the_prompt_in_the_log(
    start_cloud: StartCloud,
) -> None:
    cloud = start_cloud()
    assert health_of(cloud.address) == health_pb2.HealthCheckResponse.SERVING
    async with open_channel(Address.parse(cloud.address)) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(6, handoff_step=3), request_id="request-17"))
        *_, ending = await stream.receive_until(HandedOff)
        await stream.send(Close())
        await stream.ends_ok()
    assert cloud.nfe()["cloud"] == ending.totals.nfe_cloud == 3
    (line,) = wait_until(lambda: [entry for entry in log_of(cloud) if entry["event"] == "session closed"], "the log")
    assert line["request_id"] == "request-17"
    assert (line["nfe_cloud"], line["next_step"], line["outcome"]) == (3, 3, "HandedOff")
    assert "red apple" not in cloud.program.stderr
    assert cloud.program.stdout.splitlines()[1] == "cloud-service serving cloud"
    cloud.program.signal(signal.SIGTERM)
    assert cloud.program.wait().returncode == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_metrics_pass_promtool(cloud: Cloud) -> None:
    with urllib.request.urlopen(f"http://{cloud.metrics_address}/metrics", timeout=10) as answer:
        text = answer.read()
    check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")
    assert b"_created" not in text


async def test_sigterm_lets_a_running_session_finish(start_cloud: StartCloud) -> None:
    cloud = start_cloud()
    cloud.unet.hold_after(2)
    async with open_channel(Address.parse(cloud.address)) as stub:
        stream, late = Stream(stub), Stream(stub)
        await stream.send(opening(always(6, handoff_step=4)))
        await stream.receive_until(Step)
        cloud.program.signal(signal.SIGTERM)
        wait_until(lambda: health_of(cloud.address) == health_pb2.HealthCheckResponse.NOT_SERVING, "NOT_SERVING")
        await late.send(opening(always(2)))
        assert isinstance(await late.error(), NotServing)
        cloud.unet.open()
        *_, ending = await stream.receive_until(HandedOff)
        assert ending.state.step_index == 4
        await stream.ends_ok()
    assert cloud.program.wait().returncode == 0


async def test_the_grace_period_is_kept(start_cloud: StartCloud) -> None:
    cloud = start_cloud("--grace-seconds", "0.3")
    cloud.unet.hold_after(2)
    async with open_channel(Address.parse(cloud.address)) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(6)))
        await stream.receive_until(Step)
        cloud.program.signal(signal.SIGINT)
        assert isinstance(await stream.error(), NotServing)
        cloud.unet.open()
    assert cloud.program.wait().returncode == 130


async def test_a_second_signal_ends_it_at_once(start_cloud: StartCloud) -> None:
    cloud = start_cloud()
    cloud.unet.hold_after(1)
    async with open_channel(Address.parse(cloud.address)) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(6)))
        await stream.receive_until(Step)
        cloud.program.signal(signal.SIGTERM)
        wait_until(lambda: any(entry["event"] == "draining" for entry in log_of(cloud)), "draining")
        cloud.program.signal(signal.SIGTERM)
        assert cloud.program.wait(5).returncode == 1


def test_a_signal_while_loading_is_obeyed(programs: Programs, tmp_path: Path) -> None:
    from harness.gate import Gate

    gates = tmp_path / "gates"
    Gate.create(gates)
    Gate(gates, "unet").hold_after(0)
    program = programs.forked("cloud_service", "serve", "--model", str(CLOUD_MODEL), *PORTS, gate=gates)
    wait_until(lambda: "listening on" in program.stdout, "the first line")
    address = program.stdout.split()[3]
    assert health_of(address) == health_pb2.HealthCheckResponse.NOT_SERVING
    wait_until(lambda: Gate(gates, "unet").holding, "the warm-up")
    program.signal(signal.SIGTERM)
    finished = program.wait(10)
    assert finished.returncode == 0
    assert "serving" not in finished.stdout


def test_the_end_of_standard_input_ends_it(programs: Programs) -> None:
    program = programs.forked("cloud_service", "serve", "--model", str(CLOUD_MODEL), *PORTS, "--exit-with-stdin")
    assert program.wait().returncode == 0  # standard input is /dev/null


def test_bad_luck_is_one_plain_line_and_exit_code_1(programs: Programs, tmp_path: Path) -> None:
    too_large = str(copy_model(CLOUD_MODEL, tmp_path / "large", {"unet/config.json": {"sample_size": 4_000_000}}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        model = ("--model", str(CLOUD_MODEL))
        for arguments, words in (
            ((*model, "--listen", f"127.0.0.1:{port}", "--metrics-listen", "127.0.0.1:0"), f"127.0.0.1:{port}"),
            ((*model, "--listen", "127.0.0.1:0", "--metrics-listen", f"127.0.0.1:{port}"), f"127.0.0.1:{port}"),
            (("--model", str(tmp_path / "nowhere"), *PORTS), "nowhere"),
            (("--model", str(tmp_path), *PORTS), "model_index.json"),
            ((*model, *PORTS, "--device", "cuda"), "CUDA"),
            ((*model, "--listen", "203.0.113.1:5", "--metrics-listen", "127.0.0.1:0"), "annot assign"),
            ((*model, *PORTS, "--tls-cert", __file__, "--tls-key", __file__), "no PEM certificate"),
            ((*model, *PORTS, *TLS, "--tls-client-ca", __file__), "holds no PEM"),
            (("--model", too_large, *PORTS), "not enough memory"),
        ):
            finished = programs.forked("cloud_service", "serve", *arguments).wait()
            assert finished.returncode == 1, finished.stderr
            assert words in one_plain_line(finished)


def test_what_nobody_expected_is_one_plain_line_after_a_logged_traceback(programs: Programs, tmp_path: Path) -> None:
    odd = copy_model(CLOUD_MODEL, tmp_path / "odd", {"unet/config.json": {"sample_size": "big"}})
    finished = programs.forked("cloud_service", "serve", "--model", str(odd), *PORTS).wait()
    *log, line = finished.stderr.splitlines()
    assert finished.returncode == 1
    assert line.startswith("error: unexpected TypeError: ")
    assert "Traceback" in json.loads(log[-1])["traceback"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], "65535"),
        (["--max-batch", "0"], "max-batch"),
        (["--auth-token-file", "no-such-file"], "no-such-file"),
        (["--auth-token-file", "{empty}"], "empty"),
        (["--auth-token-file", "{words}"], "is no token"),
        (["--auth-token-file", "{token}", "--listen", "0.0.0.0:0"], "in the clear"),
        (["--tls-cert", "{token}"], "--tls-key"),
        (["--dtype", "int4"], "float32"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_usage_is_one_plain_line_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "words").write_text("secret\ntwo words\n")
    filled = [word.format(**{each: tmp_path / each for each in ("token", "empty", "words")}) for word in arguments]
    command = [sys.executable, "-m", "cloud_service", "serve", "--model", str(CLOUD_MODEL), *filled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_help_answers_before_anything_heavy_is_imported() -> None:
    probe = "import sys; from cloud_service.__main__ import cli; print(sorted({'torch', 'grpc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
    command = [sys.executable, "-m", "cloud_service", "serve", "-h"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert time.monotonic() - started < 5  # a fraction of a second on an idle machine
    assert "cloud-service listening on" in done.stdout
    command = [sys.executable, "-m", "cloud_service", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("cloud-service, version ")


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_refused_at_the_start(programs: Programs) -> None:
    # The bundled model: of the tiny one no batch is too large for this machine.
    finished = programs.cold("cloud_service", "serve", *PORTS, "--max-batch", "100000").wait()
    assert finished.returncode == 1
    assert "serving" not in finished.stdout
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: a batch of 100000 takes about .* GiB .* say --max-batch [0-9]+, or make room", line)
