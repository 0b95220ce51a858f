from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from toy_laboratory import NUM_STEPS, PROMPTS, Silent, ToyLaboratory, error_of

from orchestrator.search.candidate import cloud_only, hybrid
from orchestrator.search.journal import Journal, candidate_key
from orchestrator.search.pareto import (
    Confirmed,
    bootstrap_interval,
    earliest_under,
    kept_cloud_only,
    kept_hybrids,
    rank_correlation,
)
from orchestrator.search.run import Findings, Search
from orchestrator.search.stages import SearchSettings, to_confirm
from orchestrator.search.tail import make_tail, tail_errors

SETTINGS = SearchSettings(
    coordinates=(tuple(float(i) for i in range(NUM_STEPS)),),
    cloud_calls=tuple(range(4, 9)),
    hybrid_calls=tuple(range(4, 8)),
    min_edge_steps=4,
    max_error=0.5,
)


def search(folder: Path, laboratory: ToyLaboratory, **options: object) -> Findings:
    journal = Journal.open(folder / "plan.json.partial", {"toy": 1})
    return Search(laboratory, SETTINGS, journal, Silent(), **{"num_rounds": 2, **options}).run()  # type: ignore[arg-type]


def test_plans_are_better_than_even_calls_and_fit_together(tmp_path: Path) -> None:
    findings = search(tmp_path, ToyLaboratory())
    assert [plan.cloud_calls for plan in findings.plans] == sorted(plan.cloud_calls for plan in findings.plans)
    for plan in findings.plans:
        assert plan.error_interval[0] < plan.error < plan.error_interval[1]
        assert plan.tail_error[plan.handoff_step] == pytest.approx(plan.error)
        assert plan.error <= SETTINGS.max_error
        if plan.handoff_step < NUM_STEPS:
            assert plan.edge_steps >= SETTINGS.min_edge_steps
            assert plan.residual is not None
            assert len(plan.fade) == NUM_STEPS
            assert plan.tail_error[:2] == (math.inf, math.inf)
            assert all(map(math.isfinite, plan.tail_error[2:]))
        else:
            even = cloud_only(
                (0, 1, *range(4, NUM_STEPS, 16 // (plan.cloud_calls - 2)))[: plan.cloud_calls], 20, "linear"
            )
            assert plan.error <= error_of(even)
    whole = [plan for plan in findings.plans if plan.handoff_step == NUM_STEPS]
    assert {plan.predictor for plan in whole} == {"quadratic"}
    assert [plan.cloud_calls for plan in whole] == [4, 5, 6, 7, 8]


def test_the_screen_is_compared_with_closed_loop(tmp_path: Path) -> None:
    findings = search(tmp_path, ToyLaboratory())
    assert findings.ranking == pytest.approx(1.0)
    assert findings.scale
    assert min(findings.scale) > 0.99  # the toy's prompts rank the same in both


def test_tail_errors_follow_the_measured_ones_although_the_screen_is_off(tmp_path: Path) -> None:
    findings = search(tmp_path, ToyLaboratory(bias=0.3))
    plan = next(each for each in findings.plans if each.correction_steps and each.handoff_step < NUM_STEPS)
    tail = next(
        tail
        for tail, _ in findings.tails
        if tail.plan.calls == (*plan.real_steps, *plan.correction_steps) or tail.real_steps == plan.real_steps
    )
    for handoff_step in range(2, NUM_STEPS + 1):
        assert plan.tail_error[handoff_step] == pytest.approx(error_of(tail.at(handoff_step)))


def test_an_interrupted_search_repeats_no_run_and_finds_the_same(tmp_path: Path) -> None:
    class Interrupted(ToyLaboratory):
        def run(self, candidate: object) -> list[float]:
            if self.num_runs == 10:
                raise KeyboardInterrupt
            return super().run(candidate)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Interrupted())
    rest, whole = ToyLaboratory(), ToyLaboratory()
    resumed = search(tmp_path, rest)
    (tmp_path / "other").mkdir()
    assert resumed.plans == search(tmp_path / "other", whole).plans
    assert rest.num_runs == whole.num_runs - 10
    assert rest.num_probes < whole.num_probes


def test_another_setting_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "partial"
    Journal.open(path, {"steps": 50}).remember("key", lambda: [1.0, math.inf])
    again = Journal.open(path, {"steps": 50})
    assert not again.started_anew
    assert again.remember("key", pytest.fail) == (1.0, math.inf)
    other = Journal.open(path, {"steps": 20})
    assert other.started_anew
    assert other.results == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', "\x00"])
def test_a_file_that_is_no_journal_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "partial").write_text(content)
    assert Journal.open(tmp_path / "partial", {}).started_anew
    assert json.loads((tmp_path / "partial").read_text())["results"] == {}


def test_without_time_what_is_known_is_enough(tmp_path: Path) -> None:
    allowed = iter([True] * 25)
    findings = search(tmp_path, ToyLaboratory(), affords=lambda: next(allowed, False))
    assert findings.num_left_out > 0
    assert findings.plans
    for plan in findings.plans:
        assert not math.isinf(plan.tail_error[plan.handoff_step])


def test_a_candidate_without_pictures_is_not_kept(tmp_path: Path) -> None:
    findings = search(tmp_path, ToyLaboratory(broken=6))
    assert 6 not in {plan.cloud_calls for plan in findings.plans}
    assert {5, 7} <= {plan.cloud_calls for plan in findings.plans}


def test_the_most_promising_of_each_number_of_calls_come_first(tmp_path: Path) -> None:
    from orchestrator.search.stages import Scored, propose_cloud_only, propose_hybrids

    screen = ToyLaboratory().screen([])
    whole = propose_cloud_only(screen, SETTINGS)
    parted = propose_hybrids(screen, SETTINGS, whole)
    for proposed in (whole, parted):
        chosen = to_confirm(proposed, SETTINGS)
        firsts = [each.candidate.cloud_calls for each in chosen[: len(proposed)]]
        assert sorted(firsts) == sorted(proposed)
        for calls, each in proposed.items():
            assert isinstance(each[0], Scored)
            assert each[0] in chosen
            assert all(scored.candidate.cloud_calls == calls for scored in each)
            assert [scored.error for scored in each] == sorted(scored.error for scored in each)
    earliest = {each.candidate.handoff_step for each in to_confirm(parted, SETTINGS)}
    assert 2 in earliest


def found(calls: tuple[int, ...], num_real: int, error: float) -> Confirmed:
    candidate = (
        cloud_only(calls, NUM_STEPS, "linear") if num_real == len(calls) else hybrid(calls, num_real, "linear", "reuse")
    )
    return Confirmed(candidate=candidate, screened=error, errors=(error, error))


def test_a_plan_is_kept_if_no_cheaper_one_is_about_as_good() -> None:
    four, five, six = (0, 1, 4, 8), (0, 1, 4, 8, 12), (0, 1, 4, 8, 12, 16)
    kept = kept_cloud_only([found(four, 4, 0.2), found(five, 5, 0.19), found(six, 6, 0.1), found(six, 6, 0.3)], 0.25)
    assert [(each.candidate.cloud_calls, each.error) for each in kept] == [(4, 0.2), (6, 0.1)]
    # Fewer corrections may err more; more of them, or more calls, must err less.
    kept = kept_hybrids([found(five, 2, 0.1), found(five, 4, 0.2), found(five, 3, 0.19), found(six, 5, 0.3)], 0.25)
    assert [(len(each.candidate.correction_steps), each.error) for each in kept] == [(1, 0.2), (3, 0.1)]


def test_the_earliest_handoff_within_an_error_is_found() -> None:
    five = (0, 1, 4, 8, 12)
    earliest = earliest_under([found(five, 2, 0.3), found(five, 3, 0.2), found(five, 4, 0.1)], 0.25)
    assert earliest[5].candidate.handoff_step == 5


def test_ranks_and_intervals() -> None:
    assert rank_correlation([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    low, high = bootstrap_interval([1.0, 2.0, 3.0, 4.0])
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert bootstrap_interval([2.0] * PROMPTS) == (2.0, 2.0)


def test_a_tail_measured_nowhere_else_is_the_screens_times_one_factor() -> None:
    plan = hybrid((0, 1, 6, 12, 16), 3, "linear", "reuse")
    tail = make_tail(plan, NUM_STEPS)
    assert tail.real_steps == (0, 1, 6, 12, 14, 16)
    assert tail.at(2).real_steps == (0, 1)
    assert tail.at(2).correction_steps == (12, 16)
    assert tail.at(15).correction_steps == (16,)
    assert set(tail.anchors()) <= {2, 7, 13, 15, 17, NUM_STEPS}
    assert plan.handoff_step not in tail.anchors()
    errors = tail_errors(tail, {plan.handoff_step: [0.3]}, ToyLaboratory(bias=1.0).screen([]))
    assert errors[10] / errors[7] == pytest.approx(error_of(tail.at(10)) / error_of(plan))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cloud_calls": (1, 2)}, "cloud calls"),
        ({"hybrid_calls": (21,)}, "cloud calls"),
        ({"min_edge_steps": 19}, "min_edge"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SearchSettings(**{**SETTINGS.__dict__, **changed})  # type: ignore[arg-type]


def test_a_key_names_everything_of_a_candidate() -> None:
    first = hybrid((0, 1, 6), 2, "linear", "reuse")
    assert candidate_key(first) != candidate_key(hybrid((0, 1, 6), 2, "linear", "linear"))
    assert candidate_key(first) == candidate_key(hybrid((0, 1, 6), 2, "linear", "reuse"))
