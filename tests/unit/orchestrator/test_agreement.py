"""Handoff by what was measured for one prompt, and by the time that is left."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.handoff import AgreementHandoff, HandoffReason
from wire.edge_plan import Agreement, EdgePlan
from wire.messages import Plan

STEPS = 12
BOUND = 10

positive = st.floats(1e-3, 1e3)
numbers = st.just(0.0) | positive
curves = st.lists(positive, min_size=STEPS, max_size=STEPS)
tails = st.lists(numbers | st.just(math.inf), min_size=STEPS + 1, max_size=STEPS + 1)
measurements = st.lists(numbers | st.sampled_from([math.nan, math.inf]), min_size=STEPS, max_size=STEPS)
scales = st.sampled_from([2.0**-20, 0.25, 2.0, 2.0**20])  # exact, so that no rounding decides


def a_plan(handoff_step: int = BOUND) -> Plan:
    return Plan(num_inference_steps=STEPS, handoff_step=handoff_step)


def agreement(
    disagreement: Sequence[float] = (1.0,) * STEPS,
    tail_error: Sequence[float] = tuple(1.0 - i / STEPS for i in range(STEPS + 1)),
    tolerance: float = 0.5,
) -> Agreement:
    return Agreement(disagreement=tuple(disagreement), tail_error=tuple(tail_error), tolerance=tolerance)


def handoff(made: Agreement, measured: Sequence[float], bound: int = BOUND) -> tuple[int, HandoffReason]:
    """Return the step at which the edge takes over when every step is measured, and why."""
    policy = AgreementHandoff(made, a_plan(bound))
    for step in range(STEPS):
        policy.observe(step, measured[step])
        if reason := policy.decide(step + 1):
            return step + 1, reason
    raise AssertionError("the bound was passed")


# ------------------------------------------------------------------------------ when


def test_a_prompt_like_those_of_the_search_hands_off_where_their_error_is_allowed():
    assert handoff(agreement(), [1.0] * STEPS) == (7, HandoffReason.AGREEMENT)  # 1 - 7/12 < 0.5


def test_an_easy_prompt_hands_off_sooner_a_hard_one_later():
    assert handoff(agreement(), [0.6] * STEPS)[0] == 3
    assert handoff(agreement(), [2.0] * STEPS)[0] == BOUND


def test_a_dip_at_one_step_is_no_reason():
    u_shaped = [4.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 4.0]
    made = agreement(u_shaped, [1.0] * STEPS + [0.0], tolerance=0.9)
    assert handoff(made, u_shaped) == (BOUND, HandoffReason.PLAN)


@given(curve=curves, tail=tails, measured=measurements)
def test_tolerance_zero_never_triggers(curve, tail, measured):
    assert handoff(agreement(curve, tail, 0.0), measured) == (BOUND, HandoffReason.PLAN)


@given(curve=curves, measured=measurements, tolerance=st.floats(0.0, 1e6))
def test_an_infinite_tail_error_never_triggers(curve, measured, tolerance):
    made = agreement(curve, [math.inf] * (STEPS + 1), tolerance)
    assert handoff(made, measured) == (BOUND, HandoffReason.PLAN)


@given(curve=curves, tail=tails, measured=measurements, tolerance=st.floats(0.0, 1e6), bound=st.integers(1, STEPS))
def test_the_bound_is_never_passed_and_agreement_means_what_it_says(curve, tail, measured, tolerance, bound):
    made = agreement(curve, tail, tolerance)
    step, reason = handoff(made, measured, bound)
    assert step <= bound
    assert (reason is HandoffReason.PLAN) == (step == bound)
    if reason is HandoffReason.AGREEMENT:
        policy = AgreementHandoff(made, a_plan(bound))
        for earlier in range(step):
            policy.observe(earlier, measured[earlier])
        assert policy.expected_error(step) < tolerance


@given(curve=curves, tail=tails, tolerance=st.floats(0.0, 1e3), data=st.data())
def test_a_smaller_disagreement_hands_off_no_later(curve, tail, tolerance, data):
    hard = data.draw(st.lists(st.floats(0.0, 1e3), min_size=STEPS, max_size=STEPS))
    easy = [data.draw(st.floats(0.0, q)) for q in hard]
    made = agreement(curve, tail, tolerance)
    assert handoff(made, easy)[0] <= handoff(made, hard)[0]


@given(curve=curves, tail=tails, measured=measurements, low=st.floats(0, 1e3), high=st.floats(0, 1e3))
def test_a_larger_tolerance_hands_off_no_later(curve, tail, measured, low, high):
    low, high = sorted((low, high))
    assert handoff(agreement(curve, tail, high), measured)[0] <= handoff(agreement(curve, tail, low), measured)[0]


# ------------------------------------------------------------------------------ what is measured


@given(curve=curves, tail=tails, measured=measurements, unit=scales, tolerance=numbers)
def test_units_do_not_matter(curve, tail, measured, unit, tolerance):
    # Of q: both curves in other units. Of the error: the tail and the tolerance.
    made = agreement(curve, tail, tolerance)
    in_others = agreement([unit * q for q in curve], tail, tolerance)
    assert handoff(in_others, [unit * q for q in measured]) == handoff(made, measured)
    in_others = agreement(curve, [unit * error for error in tail], unit * tolerance)
    assert handoff(in_others, measured) == handoff(made, measured)


def test_the_scale_compares_the_same_steps():
    policy = AgreementHandoff(agreement([8.0, 4.0, 2.0, 1.0] + [1.0] * 8), a_plan())
    assert policy.scale is None
    policy.observe(1, 2.0)
    assert policy.scale == 0.5
    policy.observe(3, 3.0)
    assert policy.scale == pytest.approx(5.0 / 5.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_left_out(bad):
    policy = AgreementHandoff(agreement(), a_plan())
    policy.observe(0, bad)
    assert policy.scale is None
    assert policy.decide(1) is None
    policy.observe(1, 2.0)
    policy.observe(2, bad)
    assert policy.scale == 2.0


def test_without_a_measurement_only_the_bound_hands_off():
    policy = AgreementHandoff(agreement(tail_error=[0.0] * (STEPS + 1), tolerance=1.0), a_plan())
    assert [policy.decide(step) for step in range(BOUND)] == [None] * BOUND
    assert policy.decide(BOUND) is HandoffReason.PLAN
    assert policy.expected_error(3) is None


def test_a_pair_that_never_disagreed_in_the_search_hands_off_at_the_bound():
    made = agreement([0.0] * STEPS, [0.0] * (STEPS + 1), tolerance=1.0)
    assert handoff(made, [0.0] * STEPS) == (BOUND, HandoffReason.PLAN)


def test_where_the_edge_may_not_take_over_no_error_is_small_enough():
    policy = AgreementHandoff(agreement(tail_error=[math.inf] * 6 + [0.1] * 7), a_plan())
    policy.observe(0, 0.0)  # 0 times infinity is not a number
    assert policy.expected_error(5) == math.inf
    assert policy.decide(5) is None
    assert policy.decide(6) is HandoffReason.AGREEMENT


def test_the_report_says_in_a_line_why_it_handed_off():
    policy = AgreementHandoff(agreement(), a_plan())
    assert policy.why(BOUND) == "the shadow measured nothing"
    policy.observe(0, 1.5)
    assert policy.why(9) == (
        "the models disagree 1.50 times as much as on the search prompts: handing off before step 9 "
        "is expected to cost an error of 0.375, 0.500 is allowed"
    )


def test_the_report_says_in_a_line_that_no_error_is_known_for_a_handoff():
    policy = AgreementHandoff(agreement(tail_error=[math.inf] * 6 + [0.1] * 7), a_plan())
    policy.observe(0, 1.5)
    assert policy.why(1) == (
        "the models disagree 1.50 times as much as on the search prompts: "
        "the search knows no error of a handoff before step 1"
    )


# ------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail_error": [0.1] * STEPS}, f"one value more than disagreement has \\({STEPS}\\), not {STEPS}"),
        ({"tolerance": -1.0}, "tolerance must be a number of at least 0, not -1.0"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"tolerance": math.inf}, "tolerance must be"),
        ({"disagreement": [1.0] * 3 + [-1.0] + [1.0] * 8}, r"not -1.0 \(step 3\)"),
        ({"disagreement": [math.inf] + [1.0] * 11}, r"not inf \(step 0\)"),
        ({"tail_error": [math.nan] + [1.0] * STEPS}, r"not nan \(step 0\)"),
        ({"tail_error": [-0.1] + [1.0] * STEPS}, r"not -0.1 \(step 0\)"),
    ],
)
def test_curves_and_tolerances_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        agreement(**options)


def test_curves_of_another_step_count_are_refused():
    with pytest.raises(ValueError, match=f"curves are for {STEPS} steps, the plan has 50"):
        AgreementHandoff(agreement(), Plan(num_inference_steps=50, handoff_step=20))


def test_agreement_needs_the_shadow():
    with pytest.raises(ValueError, match="--no-shadow"):
        EdgePlan(agreement=agreement())
