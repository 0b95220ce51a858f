"""Figures, claims and tables of `bench.headline`, on runs that nobody ran."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.headline.claims import Claim, claims
from bench.headline.figures import PARTS, Estimate, largest_difference, quality, split, times
from bench.headline.publish import Runs, find, publish
from bench.headline.runs import Ask, Pair, Run, Work, make_variants
from bench.headline.show import print_claims
from edge_client.report import Report

VARIANTS = make_variants(0.01)
NAMES = [each.name for each in VARIANTS]
ASKS = tuple(Ask(prompt=f"prompt {index}", seed=index) for index in range(6))
# Seconds, and the distance of the latents from mode cloud's, whose norm is 10.
SECONDS = {"cloud": 2.0, "edge": 0.5, "split": 1.6, "ecdiff": 0.9, "adaptive": 0.8, "adaptive, tolerance 0.01": 1.2}
DISTANCES = {"cloud": 0.0, "edge": 5.0, "split": 2.0, "ecdiff": 3.0, "adaptive": 1.0, "adaptive, tolerance 0.01": 6.0}


def report_of(mode: str, seconds: dict[str, float], *, handoff_step: int | None = None) -> Report:
    return {
        "mode": mode,
        "nfe": {"cloud": 9, "cloud_discarded": 0, "extrapolated": 0, "edge": 41, "corrections": 3},
        "seconds": dict.fromkeys(PARTS[:-1], 0.0) | seconds,
        "handoff": None if handoff_step is None else {"reason": "plan", "step": handoff_step},
        "plan": {"origin": "ddim-50.json", "why": "12 cloud calls are the fewest"},
        "corrections": {"steps": [41, 45, 48], "wait_seconds": [0.1, 0.1, 0.1], "skipped": []},
        "fallbacks": ["the edge is too slow to shadow"] if mode == "adaptive" else [],
    }


def run_of(variant: str, ask: Ask, *, slower: float = 1.0) -> Run:
    latents = np.zeros((1, 1, 2, 2), dtype=np.float32)
    latents[0, 0, 0, 0], latents[0, 0, 1, 1] = 10.0, DISTANCES[variant]
    mode = variant.split(",")[0]
    return Run(
        variant=variant,
        ask=ask,
        wall_seconds=slower * SECONDS[variant],
        report=report_of(mode, {"cloud_compute": 0.1}, handoff_step=None if mode in ("cloud", "edge") else 30),
        latents=latents,
        picture=np.zeros((2, 2, 3), dtype=np.uint8),
    )


def everything(asks: Sequence[Ask], num_turns: int) -> Runs:
    return Runs(
        made={(name, ask): run_of(name, ask) for name in NAMES for ask in asks},
        timed={
            "dsl": [
                run_of(name, ask, slower=1 + 0.1 * turn) for turn, ask in enumerate(asks[:num_turns]) for name in NAMES
            ]
        },
    )


def work(repeats: int = 4) -> Work:
    return Work(pair=Pair(), variants=VARIANTS, asks=ASKS, repeats=repeats, links=("dsl",), num_steps=50)


def test_parts_add_up_to_the_wall_time() -> None:
    report = report_of("ecdiff", {"encode_prompt": 0.3, "cloud_compute": 0.5, "network": 0.1, "decode": 0.1})

    parts = split(report, 1.0)

    assert parts["encode_prompt"] == 0.0  # the edge encodes while the cloud works
    assert parts["rest"] == pytest.approx(0.3)
    assert sum(parts.values()) == pytest.approx(1.0)


def test_cloud_compute_that_nobody_waited_for_is_no_part_of_the_wall_time() -> None:
    parts = split(report_of("adaptive", {"cloud_compute": 0.9, "edge_compute": 0.3}), 1.0)

    assert parts["cloud_compute"] == pytest.approx(0.7)
    assert parts["rest"] == 0.0


def test_prompt_encoding_counts_where_the_edge_is_alone() -> None:
    parts = split(report_of("edge", {"encode_prompt": 0.3, "edge_compute": 0.6}), 1.0)

    assert parts["encode_prompt"] == pytest.approx(0.3)
    assert parts["rest"] == pytest.approx(0.1)


def test_quality_is_error_calls_and_accuracy_with_intervals() -> None:
    reference = [run_of("cloud", ask) for ask in ASKS]

    found = quality([run_of("ecdiff", ask) for ask in ASKS], reference, [True, True, True, False, True, True])

    assert found.error is not None
    assert (found.error.value, found.error.low, found.error.high) == pytest.approx((0.3, 0.3, 0.3))
    assert found.cloud_calls.value == 12  # corrections are calls
    assert found.edge_steps == 38  # and no steps of the edge's own
    assert found.handoff_steps == (30, 30)
    assert found.top1 is not None
    assert found.top1.value == pytest.approx(5 / 6)
    assert found.top1.low < 5 / 6 < found.top1.high
    assert quality(reference, reference, []).error is None


def test_pairs_of_runs_leave_a_drift_of_the_machine_out_of_the_ratio() -> None:
    drifts = [1.0, 1.5, 0.7, 3.0, 1.0, 1.2]
    own, reference = (
        [run_of(name, ask, slower=drift) for ask, drift in zip(ASKS, drifts, strict=True)]
        for name in ("adaptive", "cloud")
    )

    found = times("dsl", own, reference)

    assert (found.faster.low, found.faster.value, found.faster.high) == pytest.approx((2.5, 2.5, 2.5))
    assert found.wall_p50.value == pytest.approx(0.8 * 1.1)
    assert found.wall_p50.low < found.wall_p50.value < found.wall_p50.high < found.wall_p95.high


@pytest.mark.parametrize(
    ("low", "strict", "holds"), [(2.0, False, True), (1.9, False, False), (2.0, True, False), (2.1, True, True)]
)
def test_a_claim_holds_with_its_whole_interval(low: float, strict: bool, holds: bool) -> None:
    found = Estimate(value=2.5, low=low, high=3.0)

    assert Claim(variant="adaptive", what="times", found=found, limit=2.0, strict=strict).holds is holds


def test_the_floor_is_twice_as_fast_as_cloud_on_each_link_and_better_than_edge() -> None:
    findings = find(work(), everything(ASKS, 4), lambda pictures, prompts: [True] * len(prompts))

    outcomes = {(each.variant, each.what): each.holds for each in findings.claims}
    assert outcomes == {
        ("ecdiff", "times faster than cloud, dsl"): True,
        ("ecdiff", "error below edge's"): True,
        ("ecdiff", "top-1 above edge's, points"): False,  # as many are right
        ("adaptive", "times faster than cloud, dsl"): True,
        ("adaptive", "error below edge's"): True,
        ("adaptive", "top-1 above edge's, points"): False,
        ("adaptive, tolerance 0.01", "times faster than cloud, dsl"): False,
        ("adaptive, tolerance 0.01", "error below edge's"): False,
        ("adaptive, tolerance 0.01", "top-1 above edge's, points"): False,
    }


def test_accuracy_is_claimed_from_the_same_pictures() -> None:
    reference = [run_of("cloud", ask) for ask in ASKS]
    hits = {"edge": [True, False, False, False, True, False], "adaptive": [True, True, True, True, True, False]}
    qualities = [quality([run_of(name, ask) for ask in ASKS], reference, right) for name, right in hits.items()]

    [_, claim] = claims(qualities, [], [ask.prompt for ask in ASKS])

    # The intervals of both shares overlap; nowhere is the edge right alone.
    assert claim.found.value == pytest.approx(50.0)
    assert claim.found.low > 0
    assert claim.holds


def test_latents_over_a_link_are_compared_with_those_on_loopback() -> None:
    runs = everything(ASKS[:2], 0)
    same, other = run_of("edge", ASKS[0]), run_of("edge", ASKS[1])
    other.latents[0, 0, 0, 1] = 1.0

    assert largest_difference([same], runs.made) == 0.0
    assert largest_difference([same, other], runs.made) == pytest.approx(1 / np.sqrt(125))
    assert largest_difference([run_of("edge", ASKS[5])], runs.made) == 0.0  # nothing to compare with


def test_an_interrupted_run_keeps_what_every_mode_has_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = everything(ASKS, 3)
    del runs.made["ecdiff", ASKS[4]]
    del runs.timed["dsl"][-1]

    findings = find(work(), runs, None)
    publish(work(), runs, findings, scored=False, output=tmp_path)

    assert not findings.complete
    assert findings.claims == ()
    [path] = tmp_path.iterdir()
    assert path.name == "headline-partial.json"
    results = json.loads(path.read_text())
    assert {each["num_pictures"] for each in results["quality"]} == {4}
    assert {len(each["wall_seconds"]) for each in results["times"]} == {2}
    assert "4 pictures" in capsys.readouterr().out


def test_an_interrupt_before_anything_is_done_leaves_no_figures(tmp_path: Path) -> None:
    findings = find(work(), Runs(), None)
    publish(work(), Runs(), findings, scored=False, output=tmp_path)

    assert json.loads((tmp_path / "headline-partial.json").read_text())["quality"] == []


def test_a_complete_run_is_tables_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = everything(ASKS, 4)
    findings = find(work(), runs, lambda pictures, prompts: [True] * len(prompts))
    publish(work(), runs, findings, scored=True, output=tmp_path)

    printed = capsys.readouterr().out
    assert "adaptive, tolerance 0.01: ddim-50.json: 12 cloud calls are the fewest" in printed
    assert "adaptive, 6 of 6 pictures: the edge is too slow to shadow" in printed
    assert "dsl: 40 ms round trip, 20 Mbit/s each way" in printed
    assert "smaller than a published run" in printed
    results = json.loads((tmp_path / "headline.json").read_text())
    assert [each["variant"] for each in results["times"]] == NAMES
    assert len(results["claims"]) == 9
    assert (tmp_path / "headline.png").stat().st_size > 10_000


def test_the_table_of_claims_says_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    found = Estimate(value=2.5, low=1.9, high=3.0)
    print_claims([Claim(variant="adaptive", what="times faster than cloud, dsl", found=found, limit=2.0)])

    [line] = [line for line in capsys.readouterr().out.splitlines() if "dsl" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("adaptive", "times faster than cloud, dsl", "2.5 (1.9 to 3)", "at least 2", "FAIL")
    ]
