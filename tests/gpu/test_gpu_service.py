"""`cloud-service serve --device cuda` as a process, and the bench that measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cloud_service.memory import CudaMemory
from cloud_service.warm_up import warm_up
from diffusion.loading import load_model
from harness.cloud import SERVING
from harness.model_variants import copy_model
from harness.programs import Programs
from harness.reference import CLOUD_MODEL
from harness.waiting import wait_until
from models import bundled_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]

COMMAND = ("cloud_service", "serve", "--device", "cuda", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
COMPILING_SECONDS = 1200.0


@pytest.mark.parametrize("options", [(), ("--compile",)], ids=["plain", "compiled"])
def test_a_picture_is_drawn_by_a_service_that_was_warm_before_serving(
    programs: Programs, options: tuple[str, ...], tmp_path: Path
) -> None:
    program = programs.cold(*COMMAND, *options)
    match = wait_until(lambda: SERVING.match(program.stdout) or program.ended, "SERVING", COMPILING_SECONDS)
    assert not isinstance(match, bool), program.stderr
    events = [json.loads(line)["event"] for line in program.stderr.splitlines() if line.startswith("{")]
    assert events.count("compiled") == (4 if options else 0)
    assert events[-1] == "serving"
    drawn = programs.cold(
        "edge_client", "generate", "red apple, fluent style", "--mode", "cloud", "--cloud", match[1], "--seed", "3",
        "-o", str(tmp_path / "apple.png"), "--report", str(tmp_path / "report.json"),
    ).wait(300)  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["fallbacks"]
    step_seconds = report["seconds"]["cloud_compute"] / report["num_inference_steps"]
    print(f"{options or 'plain'}: {1e3 * step_seconds:.2f} ms a step")


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_compiled(programs: Programs, tmp_path: Path) -> None:
    large = copy_model(CLOUD_MODEL, tmp_path / "large", {"unet/config.json": {"sample_size": 256}})
    finished = programs.cold(*COMMAND, "--model", str(large), "--compile", "--max-batch", "20000").wait(300)
    assert finished.returncode == 1
    assert "say --max-batch" in finished.stderr.splitlines()[-1]
    assert "compiling" not in finished.stderr


def held_in_warm_up(*, compile_steps: bool) -> int:
    memory = CudaMemory(torch.device("cuda"))
    model = load_model(str(bundled_pair().cloud), device="cuda")
    before = memory.used_bytes()
    with torch.inference_mode():
        cost = warm_up(model, max_batch=2, compile_steps=compile_steps).batch_cost
    assert cost is not None
    return cost.held_bytes - before


def test_what_captured_graphs_keep_is_missing_for_pictures_of_other_sizes() -> None:
    assert held_in_warm_up(compile_steps=True) > held_in_warm_up(compile_steps=False)


@pytest.mark.parametrize("options", [(), ("--compile",)], ids=["plain", "compiled"])
def test_the_throughput_bench_runs_and_prints_its_figures(options: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.throughput", "--slices", "2", "--output", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILING_SECONDS, check=False)
    print(done.stdout)
    results = json.loads((tmp_path / "throughput.json").read_text())
    assert results["machine"]["gpu"] == torch.cuda.get_device_name()
    assert results["compiled"] is bool(options)
    assert all(row["evaluations_per_second"] > 0 for row in results["rows"])
