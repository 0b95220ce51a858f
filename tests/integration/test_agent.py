"""Commands that find an agent: what they give, and when they do without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adaptive_harness import tiny_edge
from PIL import Image

from harness.agent import Agent, StartCommand
from harness.cloud import Cloud
from harness.programs import ENVIRONMENT, Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL, LATENTS_SHAPE
from harness.scrape import Scrape
from harness.searched import STEPS, plan_file, searched
from wire.messages import Description

SHORT = ("--num-inference-steps", "6", "--guidance-scale", "3")


def report_of(folder: Path, name: str = "r.json") -> dict[str, object]:
    return dict(json.loads((folder / name).read_text()))


def test_command_finds_the_agent_and_imports_no_torch(agent: Agent, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edge_client.cli import run\n"
        f"sys.argv = ['edge-client', 'generate', 'a cat', '--mode', 'split', '--report', 'r.json', *{SHORT!r}]\n"
        "assert run() == 0\nassert 'torch' not in sys.modules\n"
    )
    environment = {"ECDIFF_AGENT": agent.address, "PATH": "", **ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "wrote out.png" in done.stdout
    report = report_of(tmp_path)
    assert report["agent"] == agent.address
    assert report["images"] == ["out.png"]
    with Image.open(tmp_path / "out.png") as image:
        written = json.loads(image.text["ecdiff"])
    assert written == {name: value for name, value in report.items() if name != "images"}


@pytest.mark.parametrize(
    "options",
    [("--mode", "edge"), ("--mode", "split", "--num-images", "2"), ("--mode", "ecdiff", "--latents-codec", "raw")],
    ids=["edge", "split", "ecdiff"],
)
def test_pictures_and_latents_are_bit_identical_with_and_without_the_agent(
    agent: Agent, cloud: Cloud, start_command: StartCommand, tmp_path: Path, options: tuple[str, ...]
) -> None:
    own = ("--edge-model", EDGE_MODEL, *(() if "edge" in options else ("--cloud", cloud.address)))
    for prompt in ("a cat", "a red house"):
        wanted = ("generate", prompt, *SHORT, *options, "--seed", "7")
        files = [("-o", f"{name}.png", "--save-latents", f"{name}.npy", "--report", f"{name}.json") for name in "ab"]
        through, alone = (
            start_command(agent, *wanted, *files[0]),
            start_command(agent, *wanted, *own, *files[1], "--no-agent"),
        )
        assert (through.wait().returncode, alone.wait().returncode) == (0, 0), through.stderr + alone.stderr
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
        reports = [report_of(tmp_path, f"{name}.json") for name in "ab"]
        assert [report["agent"] for report in reports] == [agent.address, None]
        assert set(reports[0]) == set(reports[1])
        assert reports[0]["step_sources"] == reports[1]["step_sources"]
        for first, second in zip(reports[0]["images"], reports[1]["images"], strict=True):
            with Image.open(tmp_path / first) as one, Image.open(tmp_path / second) as other:
                assert one.tobytes() == other.tobytes()


def test_files_that_are_named_are_read_and_written_by_the_command(
    agent: Agent, start_command: StartCommand, description: Description, tmp_path: Path
) -> None:
    searched_plan = searched((0, 1, 3), handoff_step=5)
    plan_file(description, tiny_edge().info.fingerprint, searched_plan).write(tmp_path / "mine.json")
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).standard_normal(LATENTS_SHAPE).astype(np.float32))
    files = ("--plan", "mine.json", "--initial-latents", "noise.npy", "--report", "r.json", "--metrics-file", "m.prom")
    done = start_command(agent, "generate", "a cat", "--num-inference-steps", str(STEPS), *files).wait()
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path)
    assert (report["agent"], report["plan"]["origin"]) == (agent.address, "mine.json")
    # This run alone, whatever else the agent has counted.
    scrape = Scrape((tmp_path / "m.prom").read_text())
    assert scrape.value("ecdiff_generation_seconds_count", mode="adaptive") == 1
    assert scrape.value("ecdiff_nfe_total", source="cloud") == report["nfe"]["cloud"]


def test_compare_goes_through_the_agent(agent: Agent, start_command: StartCommand, tmp_path: Path) -> None:
    done = start_command(agent, "compare", "a cat", *SHORT, "--report", "r.json").wait()
    assert done.returncode == 0, done.stderr
    runs = report_of(tmp_path)["runs"]
    assert [run["agent"] for run in runs] == [agent.address] * 5
    assert (tmp_path / "compare.png").is_file()


def test_no_agent_ignores_it(agent: Agent, start_command: StartCommand, tmp_path: Path) -> None:
    own = ("--mode", "edge", "--edge-model", EDGE_MODEL, "--no-agent", "--report", "r.json")
    done = start_command(agent, "generate", "a cat", *SHORT, *own).wait()
    assert (done.returncode, done.stderr) == (0, "")
    assert report_of(tmp_path)["agent"] is None


MISMATCHES = {
    "edge-model": (("--mode", "edge", "--edge-model", CLOUD_MODEL), "--edge-model"),
    "dtype": (("--mode", "edge", "--edge-model", EDGE_MODEL, "--dtype", "bfloat16"), "--dtype auto"),
    "timeout": (("--mode", "split", "--edge-model", EDGE_MODEL, "--cloud-timeout", "5"), "--cloud-timeout 3.0"),
}


@pytest.mark.parametrize(("options", "piece"), MISMATCHES.values(), ids=MISMATCHES)
def test_command_that_names_something_else_runs_by_itself_and_says_why(
    agent: Agent,
    cloud: Cloud,
    start_command: StartCommand,
    tmp_path: Path,
    options: tuple[str | Path, ...],
    piece: str,
) -> None:
    if "split" in options:
        options = (*options, "--cloud", cloud.address)
    before = agent.num_done(mode=options[1], outcome="done")
    done = start_command(agent, "generate", "a cat", *SHORT, *options, "--report", "r.json").wait()
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: the agent was started with")
    assert piece in line
    assert line.endswith(": this command runs by itself")
    report = report_of(tmp_path)
    assert report["agent"] is None
    assert line.removeprefix("note: ") in report["warnings"]
    # Its timings reach the agent's metrics all the same.
    assert agent.num_done(mode=options[1], outcome="done") == before + 1


def test_naming_what_the_agent_has_is_no_difference(
    agent: Agent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    own = ("--mode", "split", "--edge-model", EDGE_MODEL, "--cloud", cloud.address, "--device", "cpu")
    done = start_command(agent, "generate", "a cat", *SHORT, *own, "--dtype", "float32", "--report", "r.json").wait()
    assert (done.returncode, done.stderr) == (0, "")
    assert report_of(tmp_path)["agent"] == agent.address


def test_guidance_that_nobody_named_is_that_of_the_agents_model(
    agent: Agent, start_command: StartCommand, tmp_path: Path
) -> None:
    # The tiny pair is none of the bundled ones.
    done = start_command(agent, "generate", "a cat", "--num-inference-steps", "4", "--report", "r.json").wait()
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path)["guidance_scale"] == 7.5


def test_failure_and_bad_usage_are_the_same_plain_line(
    agent: Agent, start_command: StartCommand, tmp_path: Path
) -> None:
    np.save(tmp_path / "noise.npy", np.zeros((1, 4, 8, 8), np.float32))
    (tmp_path / "plan.json").write_text("{}")
    for options, code, piece in (
        (("--height", "100"), 1, "multiples of 8"),
        (("--initial-latents", "noise.npy"), 1, "noise.npy has shape (1, 4, 8, 8), this model and size need"),
        (("--plan", "plan.json"), 1, "plan file plan.json: format must be"),
        (("--handoff-step", "51"), 2, "handoff_step must lie in 0..50"),
    ):
        done = start_command(agent, "generate", "a cat", *options).wait()
        assert (done.returncode, done.stdout) == (code, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert piece in line
    assert not (tmp_path / "out.png").exists()


def test_what_listens_there_but_is_no_agent_is_named(cloud: Cloud, programs: Programs, tmp_path: Path) -> None:
    environment = {"ECDIFF_AGENT": cloud.address}
    arguments = ("generate", "a cat", *SHORT, "--mode", "edge", "--edge-model", str(EDGE_MODEL), "--report", "r.json")
    done = programs.forked("edge_client", *arguments, folder=tmp_path, environment=environment).wait()
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"note: what listens at {cloud.address} is no agent that answers")
    assert report_of(tmp_path)["agent"] is None
