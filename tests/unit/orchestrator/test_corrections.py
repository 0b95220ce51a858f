"""When the edge asks the cloud after the handoff, and when it may."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.corrections import (
    CorrectionPolicy,
    CorrectionPrice,
    DisagreementCorrections,
    Granted,
    ListedCorrections,
    calls_left,
    make_corrections,
)
from orchestrator.plan import PREDICTORS
from wire.edge_plan import CORRECTIONS, RESIDUALS, EdgePlan

STEPS = 20
EVEN = [1.0] * STEPS

Disagreement = Callable[[int], float]


def asked_at(granted: Granted, disagreement: Disagreement, *, steps: Sequence[int] = range(STEPS)) -> list[int]:
    """Return the steps at which the cloud is asked, which answers every time."""
    asked = []
    for step in steps:
        if granted.wants_call(step, lambda step=step: disagreement(step)):
            asked.append(step)
            granted.corrected(step)
    return asked


def granted(policy: CorrectionPolicy, **options: object) -> Granted:
    return Granted(policy=policy, num_inference_steps=STEPS, **options)


def always() -> CorrectionPolicy:
    return DisagreementCorrections(EVEN, 0.0)


def never_measured() -> float:
    raise AssertionError("nobody needs to know")


numbers = st.floats(0.0, 1e3) | st.just(math.inf) | st.just(math.nan)
curves = st.lists(numbers, min_size=STEPS, max_size=STEPS)
clocks = st.lists(st.floats(-1.0, 5.0), min_size=STEPS, max_size=STEPS)


# ------------------------------------------------------------------------------ policies


@pytest.mark.parametrize(
    ("corrections", "steps"), [("none", []), ("final", [STEPS - 1]), ("planned", [3, 4, 11]), ("disagreement", [])]
)
def test_each_name_has_its_steps(corrections, steps):
    plan = EdgePlan(corrections=corrections, correction_steps=(3, 4, 11), tolerance=1.0)
    assert asked_at(granted(make_corrections(plan, EVEN)), lambda step: 0.0) == steps


def test_every_name_of_a_policy_can_be_made():
    for corrections in CORRECTIONS:
        assert make_corrections(EdgePlan(corrections=corrections), EVEN) is not None


def test_known_steps_measure_nothing():
    policy = ListedCorrections((2, 5))
    assert [step for step in range(8) if policy.wants(step, never_measured)] == [2, 5]


def test_planned_steps_before_the_handoff_are_not_run():
    policy = granted(ListedCorrections((3, 9, 12)))
    assert asked_at(policy, lambda step: 0.0, steps=range(9, STEPS)) == [9, 12]


def test_tolerance_zero_asks_at_every_step_and_measures_nothing():
    policy = DisagreementCorrections(EVEN, 0.0)
    assert all(policy.wants(step, never_measured) for step in range(STEPS))


@given(values=st.lists(st.floats(0.0, 1e3), min_size=STEPS, max_size=STEPS))
def test_huge_tolerance_never_asks(values):
    assert asked_at(granted(DisagreementCorrections(EVEN, 1e9)), values.__getitem__) == []


def test_disagreement_adds_up_to_the_tolerance_and_begins_anew_with_each_answer():
    policy = granted(DisagreementCorrections([0.5] * STEPS, 1.0))
    assert asked_at(policy, lambda step: 0.5) == [3, 7, 11, 15, 19]


def test_disagreement_counts_as_far_as_it_moves_the_latents():
    sensitivity = [0.0] * 10 + [1.0] * 10
    assert asked_at(granted(DisagreementCorrections(sensitivity, 2.5)), lambda step: 1.0) == [12, 15, 18]


@given(values=st.lists(st.floats(0.0, 1.0), min_size=STEPS, max_size=STEPS), low=st.floats(0, 5), high=st.floats(0, 5))
def test_a_larger_tolerance_asks_no_sooner_and_no_more_often(values, low, high):
    low, high = sorted((low, high))
    strict, lax = (
        asked_at(granted(DisagreementCorrections(EVEN, tolerance)), values.__getitem__) for tolerance in (low, high)
    )
    assert len(lax) <= len(strict)
    assert all(sooner <= later for sooner, later in zip(strict, lax, strict=False))


def test_where_nothing_can_be_compared_it_asks_until_something_can():
    # Without the shadow: two answers, and then there is something to compare with.
    answers = []

    def disagreement(step: int) -> float:
        return 0.0 if len(answers) == 2 else math.inf

    policy = granted(DisagreementCorrections(EVEN, 1e9))
    for step in range(STEPS):
        if policy.wants_call(step, lambda step=step: disagreement(step)):
            policy.corrected(step)
            answers.append(step)
    assert answers == [0, 1]


def test_it_asks_where_the_disagreement_is_not_a_number():
    values = [0.0] * 5 + [math.nan] + [0.0] * (STEPS - 6)
    assert asked_at(granted(DisagreementCorrections(EVEN, 1.0)), values.__getitem__) == [5]


def test_after_a_lost_cloud_nothing_is_asked_or_measured():
    policy = granted(DisagreementCorrections(EVEN, 1e9))
    assert policy.wants_call(0, lambda: math.inf)
    policy.refuse_all()
    assert not any(policy.wants_call(step, never_measured) for step in range(1, STEPS))
    assert policy.skipped == []


# ------------------------------------------------------------------------------ budget and deadline


@given(values=curves, tolerance=st.floats(0.0, 10.0), budget=st.integers(0, STEPS + 1), answers=st.booleans())
def test_the_budget_is_hard_whether_or_not_answers_come(values, tolerance, budget, answers):
    policy = granted(DisagreementCorrections(EVEN, tolerance), calls_left=budget)
    asked = 0
    for step in range(STEPS):
        if policy.wants_call(step, lambda step=step: values[step]):
            asked += 1
            if answers:
                policy.corrected(step)
    assert asked <= budget
    assert policy.calls_left == budget - asked


def test_the_budget_is_of_the_whole_generation():
    assert calls_left(EdgePlan(max_cloud_calls=12), 9) == 3
    assert calls_left(EdgePlan(), 9) == math.inf
    # More real steps than the bound allows leave nothing, not less than nothing.
    spent = granted(always(), calls_left=calls_left(EdgePlan(max_cloud_calls=3), 5))
    assert asked_at(spent, lambda step: 0.0) == []


def test_a_budget_spends_itself_on_the_first_wishes():
    assert asked_at(granted(ListedCorrections((2, 5, 9)), calls_left=2), lambda step: 0.0) == [2, 5]


def test_a_deadline_refuses_what_there_is_no_time_for_and_says_so():
    price = CorrectionPrice(rtt_seconds=0.4, cloud_step_seconds=0.1, edge_step_seconds=0.1, decode_seconds=0.2)
    now = [0.0]
    policy = granted(ListedCorrections((5, 10, 15)), seconds_left=lambda: 3.1 - now[0], price=price)
    asked = []
    for step in range(STEPS):
        if policy.wants_call(step, never_measured):
            asked.append(step)
            now[0] += 0.4  # what a correction takes beyond the edge's own step
        now[0] += 0.1
    # 3.1 s, less 20 edge steps and the decoder, is 0.9 s: two corrections.
    assert asked == [5, 10]
    assert policy.skipped == [(15, "deadline")]


def test_the_edges_own_evaluation_is_done_while_the_round_trip_lasts():
    assert CorrectionPrice(rtt_seconds=0.1, cloud_step_seconds=0.2, edge_step_seconds=0.5).seconds == 0.5
    assert CorrectionPrice(rtt_seconds=0.4, cloud_step_seconds=0.2, edge_step_seconds=0.5).seconds == pytest.approx(0.6)


def test_what_is_left_after_a_step_is_the_edges_and_the_decoders():
    price = CorrectionPrice(edge_step_seconds=0.5, decode_seconds=0.25)
    assert price.seconds_after(STEPS - 1, STEPS) == 0.25
    assert price.seconds_after(STEPS - 3, STEPS) == 1.25


def test_a_price_that_falls_lets_the_wish_come_true_at_the_next_step():
    price = CorrectionPrice(rtt_seconds=10.0)
    policy = granted(DisagreementCorrections(EVEN, 3.0), seconds_left=lambda: 5.0, price=price)
    asked = []
    for step in range(10):
        price.rtt_seconds = 10.0 if step < 6 else 1.0
        if policy.wants_call(step, lambda: 1.0):
            asked.append(step)
            policy.corrected(step)
    assert policy.skipped == [(2, "deadline"), (3, "deadline"), (4, "deadline"), (5, "deadline")]
    assert asked == [6, 9]  # one answer pays for all that was refused


@given(values=curves, tolerance=st.floats(0.0, 10.0), seconds=clocks)
def test_every_wish_is_granted_or_listed(values, tolerance, seconds):
    left = iter(seconds)
    price = CorrectionPrice(rtt_seconds=1.0)
    policy = granted(DisagreementCorrections(EVEN, tolerance), seconds_left=lambda: next(left), price=price)
    asked = asked_at(policy, values.__getitem__)
    refused = [step for step, _ in policy.skipped]
    assert {reason for _, reason in policy.skipped} <= {"deadline"}
    assert not set(asked) & set(refused)
    assert len(asked) + len(refused) == STEPS - len(list(left))  # the time is looked up once for each wish


def test_refusals_cost_no_budget():
    policy = granted(always(), calls_left=2, seconds_left=lambda: 0.0, price=CorrectionPrice(rtt_seconds=1.0))
    assert asked_at(policy, lambda step: 0.0) == []
    assert policy.calls_left == 2
    assert len(policy.skipped) == STEPS


# ------------------------------------------------------------------------------ the edge's plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrections": "sometimes"}, "unknown corrections 'sometimes'"),
        ({"residual": "x0-linear"}, "unknown residual 'x0-linear'"),
        ({"fade": (0.5, 1.1)}, r"fade must lie in 0..1, not 1.1 \(step 1\)"),
        ({"fade": (math.nan,)}, "fade must lie in 0..1, not nan"),
        ({"correction_steps": (3, 3)}, "correction_steps must rise"),
        ({"correction_steps": (-1, 3)}, "correction_steps must rise from at least 0"),
        ({"tolerance": -0.1}, "tolerance must be a number of at least 0, not -0.1"),
        ({"tolerance": math.inf}, "tolerance must be a number of at least 0, not inf"),
        ({"tolerance": math.nan}, "tolerance must be a number of at least 0, not nan"),
        ({"max_cloud_calls": -1}, "max_cloud_calls must not be negative, not -1"),
    ],
)
def test_an_edge_plan_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EdgePlan(**options)


def test_residuals_are_predictors_that_take_any_tensor():
    assert set(RESIDUALS) == set(PREDICTORS) - {"ecdiff", "epsilon-linear", "x0-linear"}
