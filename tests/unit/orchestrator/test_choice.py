"""The choice of a plan: by tolerance, bound on calls and deadline; what is run when nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_files import COSTS, FILE, NUM_STEPS

from orchestrator.choice import Choice, choose_plan
from orchestrator.corrections import calls_left
from orchestrator.cost import predict_latency
from orchestrator.refresh import least_real_steps
from orchestrator.searched_run import plan_and_edge_plan
from wire.edge_plan import CORRECTIONS


def most_calls(choice: Choice) -> int:
    """What a generation could make at worst: the whole lead, then every correction that is left."""
    lead = len(least_real_steps(choice.plan))
    steps = [i for i in choice.edge_plan.correction_steps if i >= choice.plan.handoff_step]
    return lead + int(min(len(steps), calls_left(choice.edge_plan, lead)))


def test_the_fewest_calls_within_the_tolerance_are_chosen() -> None:
    choices = [choose_plan(FILE, tolerance=each) for each in (0.5, 0.12, 0.05, 0.02)]
    assert [FILE.plans.index(each.searched) for each in choices] == [0, 1, 2, 3]
    assert choose_plan(FILE) == choose_plan(FILE, tolerance=FILE.default_tolerance)
    assert choices[1].why == "5 cloud calls are the fewest that keep the error within 0.12: about 0.1"


@pytest.mark.parametrize("tolerance", [0.0, 0.001])
def test_a_tolerance_that_no_plan_reaches_gives_the_most_exact_and_says_so(tolerance: float) -> None:
    choice = choose_plan(FILE, tolerance=tolerance)
    assert choice.searched is FILE.plans[-1]
    assert choice.why.startswith(f"no plan that may be run reaches an error of {tolerance:g}: the most exact one has 9")


def test_a_plan_becomes_the_clouds_part_and_the_edges() -> None:
    searched = FILE.plans[1]
    plan, edge_plan = plan_and_edge_plan(FILE, searched, tolerance=0.2)
    assert (plan.handoff_step, plan.real_steps, plan.predictor) == (8, (0, 1, 3, 5, 7), "linear")
    assert (edge_plan.corrections, edge_plan.correction_steps, edge_plan.residual) == ("planned", (6, 8), "linear")
    assert edge_plan.shadow
    assert edge_plan.agreement is not None
    assert edge_plan.agreement.tolerance == 0.2


def test_agreement_allows_at_least_the_plans_own_error() -> None:
    """Else a prompt of average disagreement would keep the cloud to the last step that a bound leaves."""
    _, edge_plan = plan_and_edge_plan(FILE, FILE.plans[0], tolerance=0.01)
    assert edge_plan.agreement is not None
    assert edge_plan.agreement.tolerance == FILE.plans[0].tail_error[3]


def test_without_a_shadow_the_handoff_keeps_to_the_plan() -> None:
    plan, edge_plan = plan_and_edge_plan(FILE, FILE.plans[1], tolerance=0.2, shadow=False)
    assert plan.handoff_step == 4
    assert not edge_plan.shadow
    assert edge_plan.agreement is None
    assert edge_plan.residual == "linear"


def test_a_plan_that_never_hands_off_and_may_not_do_so_sooner_has_no_shadow() -> None:
    never = replace(FILE.plans[3], tail_error=(float("inf"),) * NUM_STEPS + (0.01,))
    assert not plan_and_edge_plan(FILE, never, tolerance=1.0)[1].shadow


@pytest.mark.parametrize("handoff_step", range(NUM_STEPS + 1))
def test_an_explicit_handoff_step_is_exact_for_every_plan(handoff_step: int) -> None:
    for searched in FILE.plans:
        plan, edge_plan = plan_and_edge_plan(FILE, searched, tolerance=1.0, handoff_step=handoff_step)
        assert plan.handoff_step == handoff_step
        assert edge_plan.agreement is None
        assert edge_plan.shadow == (0 < handoff_step < NUM_STEPS)
        assert predict_latency(plan, edge_plan, COSTS).handoff_step == handoff_step


def test_beyond_the_latest_handoff_planned_corrections_become_real_steps() -> None:
    plan, _ = plan_and_edge_plan(FILE, FILE.plans[0], tolerance=0.4, handoff_step=NUM_STEPS)
    assert plan.real_steps == (0, 1, 4, 7)


def test_an_explicit_handoff_step_is_judged_by_the_curve_there() -> None:
    choice = choose_plan(FILE, tolerance=0.05, handoff_step=6)
    assert choice.searched is FILE.plans[3]
    assert choice.why == "6 cloud calls are the fewest that keep the error within 0.05: about 0.04"
    with pytest.raises(ValueError, match="handoff_step 10 needs 4 cloud calls but max_cloud_calls is 3"):
        choose_plan(FILE, handoff_step=10, max_cloud_calls=3)


@pytest.mark.parametrize("corrections", CORRECTIONS)
def test_the_users_corrections_replace_the_plans(corrections: str) -> None:
    choice = choose_plan(FILE, tolerance=0.2, corrections=corrections)
    assert choice.edge_plan.corrections == corrections
    assert choice.edge_plan.correction_steps == ((6, 8) if corrections == "planned" else ())
    assert choice.edge_plan.tolerance == (0.2 if corrections == "disagreement" else 0.0)


def test_below_every_plans_calls_the_cheapest_is_cut_to_its_first_calls() -> None:
    cuts = {bound: choose_plan(FILE, max_cloud_calls=bound) for bound in (3, 2, 1, 0)}
    assert [each.searched for each in cuts.values()] == [FILE.plans[0]] * 4
    assert [least_real_steps(each.plan) for each in cuts.values()] == [[0, 1], [0, 1], [0], []]
    assert [each.plan.handoff_step for each in cuts.values()] == [4, 3, 1, 0]
    assert [most_calls(each) for each in cuts.values()] == [3, 2, 1, 0]
    assert "2 cloud calls and an error that nobody measured" in cuts[2].why
    assert [each.error is None for each in cuts.values()] == [False, True, True, True]


def test_error_of_an_explicit_handoff_step_is_that_of_its_curve_or_unknown() -> None:
    plan = FILE.plans[0]
    step = plan.latest_handoff_step
    assert choose_plan(FILE, handoff_step=step).error is not None
    unknown = choose_plan(FILE, handoff_step=0)
    assert unknown.error is None
    assert unknown.why.endswith("0 cloud calls and an error that nobody measured")


def test_no_calls_leave_the_edge_alone_and_no_shadow() -> None:
    choice = choose_plan(FILE, max_cloud_calls=0, costs=COSTS)
    assert not choice.edge_plan.shadow
    assert choice.estimate is not None
    assert (choice.estimate.cloud_calls, choice.estimate.parts["network"]) == (0, 0.0)


def test_a_bound_keeps_the_corrections_of_a_prompt_that_needs_the_cloud_for_longer() -> None:
    free = choose_plan(FILE, tolerance=0.1)
    bound = choose_plan(FILE, tolerance=0.1, max_cloud_calls=free.searched.cloud_calls)
    assert (free.plan.handoff_step, bound.plan.handoff_step) == (8, 5)


def test_without_the_searchs_shadow_or_corrections_no_error_is_claimed() -> None:
    plan = replace(FILE, plans=(FILE.plans[1],))
    assert choose_plan(plan, tolerance=0.2).error == FILE.plans[1].error
    for choice in (
        choose_plan(plan, tolerance=0.2, corrections="none"),
        choose_plan(plan, tolerance=0.2, corrections="final"),
        choose_plan(plan, tolerance=0.2, shadow=False),
    ):
        assert choice.error is None
        assert choice.why.endswith("about 0.1 with the shadow and the plan's own corrections")


def test_a_plan_that_asks_the_cloud_for_nothing_is_a_plan() -> None:
    steps = {"real_steps": (), "handoff_step": 0, "latest_handoff_step": 0, "correction_steps": ()}
    alone = replace(FILE.plans[0], **steps, cloud_calls=0, edge_steps=NUM_STEPS)
    choice = choose_plan(replace(FILE, plans=(alone,)))
    assert choice.plan.handoff_step == 0


def test_a_deadline_needs_costs() -> None:
    with pytest.raises(ValueError, match="costs"):
        choose_plan(FILE, deadline_seconds=1.0)


def test_within_the_deadline_the_cheapest_of_those_within_the_tolerance_is_chosen() -> None:
    assert choose_plan(FILE, tolerance=0.12, deadline_seconds=60.0, costs=COSTS).searched is FILE.plans[1]


def test_a_short_deadline_gets_the_least_error_that_meets_it() -> None:
    took = [predict_latency(*plan_and_edge_plan(FILE, each, tolerance=0.01), COSTS) for each in FILE.plans]
    between = (took[1].total_seconds + took[2].total_seconds) / 2
    choice = choose_plan(FILE, tolerance=0.01, deadline_seconds=between, costs=COSTS)
    assert choice.searched is FILE.plans[1]
    assert choice.missed_by_seconds == 0.0
    assert "reaches an error of 0.01 in" in choice.why


def test_a_deadline_below_every_plan_cuts_the_cheapest_until_it_is_met() -> None:
    alone = predict_latency(*plan_and_edge_plan(FILE, FILE.plans[0], tolerance=1.0, max_cloud_calls=0), COSTS)
    choice = choose_plan(FILE, deadline_seconds=alone.total_seconds, costs=COSTS)
    assert (choice.plan.handoff_step, choice.missed_by_seconds) == (0, 0.0)


def test_a_deadline_that_nothing_meets_gives_the_fastest_and_by_how_much_it_will_miss() -> None:
    choice = choose_plan(FILE, deadline_seconds=0.1, costs=COSTS)
    assert choice.estimate is not None
    assert choice.missed_by_seconds == pytest.approx(choice.estimate.total_seconds - 0.1)
    assert choice.why.startswith("no plan meets the deadline of 100 ms: the fastest, with 0 cloud calls")
    quick_cloud = replace(COSTS, cloud_step_seconds=0.001, rtt_seconds=0.0, edge_step_seconds=0.5)
    choice = choose_plan(FILE, deadline_seconds=0.001, costs=quick_cloud, shadow=False)
    assert choice.searched is FILE.plans[-1], (
        "where the cloud is the quicker one, the fastest plan is a plan of the file"
    )


tolerances = st.none() | st.floats(0.0, 2.0)
bounds = st.none() | st.integers(0, 12)
deadlines = st.none() | st.floats(0.01, 3.0)


@given(tolerance=tolerances, bound=bounds, deadline=deadlines, shadow=st.booleans())
def test_the_bound_is_never_exceeded(
    tolerance: float | None, bound: int | None, deadline: float | None, shadow: bool
) -> None:
    choice = choose_plan(
        FILE, tolerance=tolerance, max_cloud_calls=bound, deadline_seconds=deadline, costs=COSTS, shadow=shadow
    )
    if bound is not None:
        assert choice.estimate is not None
        assert choice.estimate.cloud_calls <= bound
        assert most_calls(choice) <= bound
        assert choice.edge_plan.max_cloud_calls is not None
        assert choice.edge_plan.max_cloud_calls <= bound


@given(tolerance=tolerances, bound=bounds, deadline=st.floats(0.01, 3.0), rtt=st.floats(0.0, 0.3))
def test_a_deadline_is_met_wherever_a_plan_meets_it(
    tolerance: float | None, bound: int | None, deadline: float, rtt: float
) -> None:
    costs = replace(COSTS, rtt_seconds=rtt)
    choice = choose_plan(FILE, tolerance=tolerance, max_cloud_calls=bound, deadline_seconds=deadline, costs=costs)
    assert choice.estimate is not None
    assert choice.missed_by_seconds == max(0.0, choice.estimate.total_seconds - deadline)
    without = choose_plan(FILE, tolerance=tolerance, max_cloud_calls=bound, costs=costs)
    assert without.estimate is not None
    if choice.missed_by_seconds > 0.0:
        assert without.estimate.total_seconds > deadline


@given(tolerance=st.floats(0.0, 2.0), looser=st.floats(0.0, 2.0), bound=bounds)
def test_a_looser_tolerance_never_costs_more_calls_and_choices_repeat(
    tolerance: float, looser: float, bound: int | None
) -> None:
    first, again = (choose_plan(FILE, tolerance=tolerance, max_cloud_calls=bound, costs=COSTS) for _ in range(2))
    assert first == again
    loose = choose_plan(FILE, tolerance=tolerance + looser, max_cloud_calls=bound, costs=COSTS)
    assert loose.searched.cloud_calls <= first.searched.cloud_calls
