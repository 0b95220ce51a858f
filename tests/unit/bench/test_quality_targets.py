from __future__ import annotations

from dataclasses import replace

import pytest

from bench.quality.cases import PUBLISHED_CLOUD, PUBLISHED_HYBRID
from bench.quality.figures import Error, Figures
from bench.quality.targets import verdicts

PROMPTS = ["a", "b", "a", "b"]


def _line(
    name: str,
    error: float,
    *,
    group: str = "searched",
    calls: float = 10.0,
    edge: float = 0.0,
    chosen: float | None = None,
    converged: float | None = None,
    scheduler: str = "ddim 50",
) -> Figures:
    reached = error if converged is None else converged
    return Figures(
        name=name,
        group=group,
        budget=None,
        scheduler=scheduler,
        cloud_calls=calls,
        edge_steps=edge,
        handoff_steps=(50, 50),
        fidelity=Error(mean=error, low=error, high=error),
        converged=Error(mean=reached, low=reached, high=reached),
        psnr_db=30.0,
        top1=None,
        top1_interval=None,
        cloud_seconds_share=0.2,
        errors=(error,) * len(PROMPTS),
        converged_errors=(reached,) * len(PROMPTS),
        chosen_error=chosen,
    )


PAPER = [
    _line(PUBLISHED_HYBRID, 0.3, group="ecdiff", calls=17, edge=13),
    _line(PUBLISHED_CLOUD, 0.02, group="ecdiff", calls=21),
]


def _outcomes(*lines: Figures) -> dict[str, str]:
    return {each.number: each.outcome for each in verdicts([*PAPER, *lines], PROMPTS)}


def test_a_quarter_of_the_error_reaches_the_aim_and_half_of_it_passes() -> None:
    assert _outcomes(_line("ours", 0.004, calls=21, chosen=0.004))["1"] == "aim reached"
    assert _outcomes(_line("ours", 0.009, calls=21, chosen=0.009))["1"] == "pass"
    assert _outcomes(_line("ours", 0.011, calls=21, chosen=0.011))["1"] == "fail"


def test_the_plan_is_picked_on_the_search_prompts_and_judged_on_the_report_prompts() -> None:
    lucky = _line("lucky", 0.001, calls=20, chosen=0.01)
    picked = _line("picked", 0.012, calls=20, chosen=0.002)

    verdict = next(each for each in verdicts([*PAPER, lucky, picked], PROMPTS) if each.number == "1")

    assert verdict.found.startswith("picked")
    assert verdict.value == pytest.approx(0.6)
    assert verdict.interval == pytest.approx((0.6, 0.6))


def test_a_plan_over_the_calls_or_without_enough_edge_steps_does_not_count() -> None:
    over = _line("over", 0.001, calls=12.5, edge=30, chosen=0.001)
    cloud_only = _line("cloud only", 0.001, calls=10, edge=9, chosen=0.001)

    outcomes = _outcomes(over, cloud_only)

    assert outcomes["3a"] == "not run"
    assert outcomes["3b"] == "fail"  # `over` has the error, with 12.5 calls
    assert _outcomes(_line("ours", 0.1, calls=8, edge=30, chosen=0.1)) == {
        "1": "fail",
        "2": "fail",
        "3a": "pass",
        "3b": "pass",
    }


def test_no_plan_that_reaches_the_error_is_a_failure_not_a_gap() -> None:
    assert _outcomes(_line("ours", 0.5, edge=30, chosen=0.5))["3b"] == "fail"
    assert _outcomes()["3b"] == "not run"


def test_the_better_base_is_held_against_the_solver_at_each_budget() -> None:
    rivals = [
        _line("rival 8", 0.5, group="solvers", calls=8, converged=0.04, scheduler="dpmpp-2m 8, trailing"),
        _line("rival 12", 0.5, group="solvers", calls=12, converged=0.01, scheduler="dpmpp-2m 12"),
        _line("other", 0.5, group="solvers", calls=12, converged=0.001, scheduler="ddim 12"),
    ]
    on_ddim = _line("on ddim", 0.5, calls=8, converged=0.05, chosen=0.5)
    on_solver = replace(
        _line("on solver", 0.5, group="on-dpmpp", calls=8, converged=0.03, scheduler="dpmpp-2m 20"),
        chosen_converged_error=0.03,
    )

    fourth = [each for each in verdicts([*rivals, on_ddim, on_solver], PROMPTS) if each.number == "4"]

    assert [each.outcome for each in fourth] == ["pass", "fail"]
    assert fourth[0].value == pytest.approx(0.75)
    assert "base ddim: on ddim 0.0500" in fourth[0].found
    assert "base dpmpp-2m: on solver 0.0300" in fourth[0].found
