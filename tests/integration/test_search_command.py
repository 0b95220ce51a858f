"""`orchestrator search` on the tiny pair: a plan file that runs, resumed, interrupted, refused."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from diffusion.loading import load_model
from harness.gate import Gate
from harness.model_variants import with_latent_channels
from harness.programs import Finished, Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.waiting import wait_until
from models import read_prompts
from orchestrator.in_process import InProcessPair
from orchestrator.searched_plan import read_plan_file
from wire.edge_plan import EdgePlan
from wire.messages import Plan

MODELS = ("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(EDGE_MODEL))
SMALL = ("--num-prompts", "2", "--num-inference-steps", "6", "--max-error", "9", "--max-cloud-calls", "4")
# Forward passes that a search is let go on for at a time.
PASSES = 8
QUICK = ("--rounds", "1", "--confirm", "1")


@pytest.fixture
def search(programs: Programs, tmp_path: Path):
    def run(*arguments: str) -> Finished:
        return programs.forked("orchestrator", "search", *arguments, folder=tmp_path).wait()

    return run


def test_search_writes_plans_that_give_what_they_say(search, tmp_path: Path) -> None:
    done = search(*MODELS, *SMALL, *QUICK, "-o", "plan.json")
    assert done.returncode == 0, done.stderr
    assert {each.name for each in tmp_path.iterdir()} == {"plan.json", "plan.png", "plan.svg"}
    assert "rank correlation" in done.stdout
    found = read_plan_file(tmp_path / "plan.json")
    assert found.prompts == tuple(read_prompts("search")[:2])
    assert found.command.startswith("orchestrator search --cloud-model")
    cloud, edge = load_model(CLOUD_MODEL), load_model(EDGE_MODEL)
    assert (found.cloud_fingerprint, found.edge_fingerprint) == (cloud.info.fingerprint, edge.info.fingerprint)
    pair = InProcessPair(cloud, edge, found.prompts, found.seeds, guidance_scale=found.guidance_scale)
    whole = pair.generate(Plan(num_inference_steps=6, handoff_step=6)).latents
    for searched in found.plans:
        plan = Plan(
            num_inference_steps=6,
            handoff_step=searched.handoff_step,
            refresh="listed",
            real_steps=searched.real_steps,
            predictor=searched.predictor,
            smoothing=0.0,
        )
        edge_plan = EdgePlan(
            shadow=searched.residual is not None,
            residual=searched.residual,
            fade=searched.fade,
            corrections="planned",
            correction_steps=searched.correction_steps,
        )
        outcome = pair.generate(plan, edge_plan)
        assert outcome.cloud_calls == searched.cloud_calls
        off = (outcome.latents - whole).flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)
        assert float(off.mean()) == pytest.approx(searched.error, rel=1e-2, abs=1e-5)


def test_an_interrupted_search_says_how_to_go_on_and_does(programs: Programs, search, tmp_path: Path) -> None:
    arguments = (*MODELS, *SMALL, "--num-inference-steps", "12", "-o", "plan.json")
    partial, gates = tmp_path / "plan.json.partial", tmp_path / "gates"
    Gate.create(gates)
    unet = Gate(gates, "unet")
    unet.hold_after(PASSES)
    program = programs.forked("orchestrator", "search", *arguments, *QUICK, folder=tmp_path, gate=gates)

    def has_results() -> bool:
        """Let the search go on a little, until something was measured; it never gets far from there."""
        found = partial.exists() and len(json.loads(partial.read_text())["results"]) > 1
        if not found and unet.holding:
            unet.hold_after(PASSES)
        return found

    wait_until(has_results, "first results")
    wait_until(lambda: unet.holding, "the search to be in the middle of something")
    program.signal(signal.SIGINT)
    done = program.wait()
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "error: interrupted; the same command goes on from plan.json.partial"
    assert "Traceback" not in done.stderr
    done = search(*arguments, *QUICK)
    assert done.returncode == 0, done.stderr
    assert not partial.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--cloud-model", "nowhere", "-o", "p.json"), "nowhere"),
        (("--scheduler", "magic", "-o", "p.json"), "scheduler"),
        (("--num-prompts", "9999", "-o", "p.json"), "prompts"),
        (("--num-prompts", "1", "-o", "p.json"), "--num-prompts"),
        (("--prompts", "none.txt", "-o", "p.json"), "none.txt"),
        (("-o", "no/such/folder/p.json"), "no/such/folder"),
        ((), "-o"),
        (("--num-inference-steps", "0", "-o", "p.json"), "num_inference_steps"),
        (("--max-cloud-calls", "60", "-o", "p.json"), "cloud calls"),
        (("--min-edge-steps", "50", "-o", "p.json"), "min_edge_steps"),
        (("--max-error", "0", "-o", "p.json"), "max-error"),
        (("--dtype", "float7", "-o", "p.json"), "dtype"),
        (
            ("--num-inference-steps", "4", "--max-cloud-calls", "2", *QUICK, "--max-error", "1e-9", "-o", "p.json"),
            "raise",
        ),
    ],
)
def test_bad_input_is_one_plain_line(search, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = search(*MODELS, "--num-prompts", "2", *arguments)
    assert done.returncode in (1, 2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "p.json").exists()


def test_models_that_share_no_latents_are_refused(search, tmp_path: Path) -> None:
    other = with_latent_channels(EDGE_MODEL, tmp_path / "other", 3)
    done = search("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(other), "-o", "p.json")
    assert done.returncode == 2
    assert "do not share latents" in done.stderr.splitlines()[-1]


def test_without_matplotlib_there_is_a_plan_and_no_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.__main__ import main

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = str(tmp_path / "plan.json")
    monkeypatch.setattr(sys, "argv", ["orchestrator", "search", *MODELS, *SMALL, *QUICK, "-o", output])
    main()
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
    assert "no plot" in capsys.readouterr().err


def test_search_prompts_and_report_prompts_never_overlap() -> None:
    known, reported, held_out = (set(read_prompts(name)) for name in ("search", "report", "held_out"))
    assert not known & reported
    assert not known & held_out
