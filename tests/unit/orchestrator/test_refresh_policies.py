"""When the cloud evaluates: what every policy keeps to, and what each is about."""

from __future__ import annotations

import math
import tracemalloc
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.measures import MEASURES
from orchestrator.plan import PlanOptions, cloud_calls, make_plan, step_sources
from orchestrator.refresh import REFRESH_POLICIES, least_real_steps, make_refresh
from wire.messages import Plan, Source

ADAPTIVE = [name for name, kind in REFRESH_POLICIES.items() if "tolerance" in kind.reads]
BOUNDED = [name for name, kind in REFRESH_POLICIES.items() if "skip_interval" in kind.reads]
NUMBERS = st.one_of(st.none(), st.floats(0, 1), st.just(math.nan), st.just(math.inf))


def run(plan: Plan, measured: list[float | None] | None = None, start_step: int = 0) -> str:
    """Return the letters of the cloud's part."""
    policy = make_refresh(plan, start_step=start_step)
    numbers = measured or [None] * plan.num_inference_steps
    return "".join(policy.decide(step, numbers[step]).letter for step in range(start_step, plan.handoff_step))


def longest_run(letters: str, letter: str) -> int:
    return max((len(list(group)) for value, group in groupby(letters) if value == letter), default=0)


@st.composite
def bounded_plans(draw: st.DrawFn, names: list[str]) -> tuple[Plan, int]:
    """Return a plan and a start step, with a budget that it can keep, or none."""
    steps = draw(st.integers(1, 60))
    plan = Plan(
        num_inference_steps=steps,
        handoff_step=draw(st.integers(0, steps)),
        refresh=(name := draw(st.sampled_from(names))),
        warmup_steps=draw(st.integers(2, 10)),
        skip_interval=draw(st.integers(0, 10)),
        final_steps=draw(st.integers(0, 4)),
        tolerance=draw(st.floats(0, 2)) if name in ADAPTIVE else 0.0,
    )
    start_step = draw(st.integers(0, plan.handoff_step))
    least = len(least_real_steps(plan, start_step=start_step))
    budget = draw(st.one_of(st.none(), st.integers(least, steps)))
    return Plan(**{**vars(plan), "max_cloud_calls": budget}), start_step


@settings(max_examples=60, deadline=None)
@given(bounded_plans(BOUNDED), st.lists(NUMBERS, min_size=60, max_size=60))
def test_bounds_hold_whatever_is_measured(case: tuple[Plan, int], measured: list[float | None]) -> None:
    plan, start_step = case
    letters = run(plan, measured, start_step)
    assert longest_run(letters, "x") <= plan.skip_interval
    assert set(letters[: plan.warmup_steps]) <= {"C"}
    first_final = plan.num_inference_steps - plan.final_steps
    assert set(letters[max(0, first_final - start_step) :]) <= {"C"}
    if plan.max_cloud_calls is not None:
        assert letters.count("C") <= plan.max_cloud_calls
    assert letters.count("C") >= len(least_real_steps(plan, start_step=start_step))


@settings(max_examples=60, deadline=None)
@given(bounded_plans(BOUNDED), st.lists(NUMBERS, min_size=60, max_size=60))
def test_a_policy_decides_the_same_again_and_no_generation_hears_of_another(
    case: tuple[Plan, int], measured: list[float | None]
) -> None:
    plan, start_step = case
    one, two = (make_refresh(plan, start_step=start_step) for _ in range(2))
    taken = [
        (one.decide(step, measured[step]), two.decide(step, measured[step]))
        for step in range(start_step, plan.handoff_step)
    ]
    assert "".join(source.letter for source, _ in taken) == run(plan, measured, start_step)
    assert all(first is second for first, second in taken)


@settings(max_examples=60, deadline=None)
@given(bounded_plans(BOUNDED), st.lists(NUMBERS, min_size=60, max_size=60))
def test_what_the_plan_foresees_comes_true(case: tuple[Plan, int], measured: list[float | None]) -> None:
    plan, start_step = case
    if start_step:
        return
    letters, foreseen = run(plan, measured), step_sources(plan)
    assert all(source is None or source.letter == letter for source, letter in zip(foreseen, letters, strict=False))
    least, most = cloud_calls(plan)
    assert least <= letters.count("C") <= most


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_tolerance_of_zero_makes_every_step_real(name: str) -> None:
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=20, handoff_step=20, refresh=name, tolerance=0.0))
    assert run(plan, [0.0] * 20) == "C" * 20


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_tolerance_that_never_triggers_leaves_fixed_with_the_longest_interval(name: str) -> None:
    options = {"num_inference_steps": 20, "handoff_step": 20, "warmup_steps": 3, "skip_interval": 4, "final_steps": 2}
    adaptive = make_plan("ecdiff", PlanOptions(**options, refresh=name, tolerance=1e9))
    fixed = make_plan("ecdiff", PlanOptions(**options, refresh="fixed"))
    assert run(adaptive, [1.0] * 20) == run(fixed) == "CCCxxxxCxxxxCxxxxCCC"


@pytest.mark.parametrize("number", [None, math.nan, math.inf])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_what_cannot_be_measured_is_evaluated(name: str, number: float | None) -> None:
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=9, handoff_step=9, refresh=name, tolerance=5.0))
    assert run(plan, [number] * 9) == "C" * 9


def adaptive(name: str, tolerance: float, **fields: int) -> Plan:
    fields = {"num_inference_steps": 12, "handoff_step": 12, "warmup_steps": 2, "skip_interval": 5} | fields
    return Plan(refresh=name, tolerance=tolerance, **fields)


@pytest.mark.parametrize("name", ["embedded-error", "easycache"])
def test_small_errors_add_up_until_a_real_step(name: str) -> None:
    # Three of 0.25 are below 1, the fourth is not.
    assert run(adaptive(name, 1.0), [0.25] * 12) == "CCxxxCxxxCxx"


def test_the_third_difference_stands_alone() -> None:
    numbers = [0.0] * 12
    numbers[4], numbers[9] = 0.01, 0.02
    assert run(adaptive("third-difference", 0.01), numbers) == "CCxxCxxxxCxx"
    assert run(adaptive("third-difference", 0.01), [0.009] * 12) == "CCxxxxxCxxxx"


def test_a_budget_is_paced_and_calls_saved_can_be_spent_later() -> None:
    assert run(adaptive("easycache", 0.0, max_cloud_calls=3), [1.0] * 12) == "CCxxxxxCxxxx"
    assert run(adaptive("easycache", 0.0, max_cloud_calls=5), [1.0] * 12) == "CCxxCxxCxxCx"
    assert run(adaptive("easycache", 0.0, max_cloud_calls=5, final_steps=1), [1.0] * 12) == "CCxxxCxxCxxC"
    calm_first = [0.0] * 7 + [1.0] * 5
    assert run(adaptive("easycache", 1.0, max_cloud_calls=6), calm_first) == "CCxxxxxCxCCC"


def test_growing_distances_are_spectrums() -> None:
    plan = Plan(num_inference_steps=30, handoff_step=30, refresh="growing", warmup_steps=3, skip_interval=30)
    assert [i for i, letter in enumerate(run(plan)) if letter == "C"] == [0, 1, 2, 4, 6, 9, 13, 18, 23, 29]
    bounded = Plan(num_inference_steps=30, handoff_step=30, refresh="growing", warmup_steps=3, skip_interval=3)
    assert [i for i, letter in enumerate(run(bounded)) if letter == "C"] == [0, 1, 2, 4, 6, 9, 13, 17, 21, 25, 29]


@pytest.mark.parametrize("name", [name for name in REFRESH_POLICIES if name != "listed"])
def test_a_warm_up_of_billions_takes_no_memory(name: str) -> None:
    plan = Plan(num_inference_steps=20, handoff_step=20, refresh=name, warmup_steps=2**32 - 1)
    tracemalloc.start()
    try:
        assert least_real_steps(plan, start_step=3) == list(range(3, 20))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_listed_steps_are_the_real_ones() -> None:
    plan = Plan(num_inference_steps=10, handoff_step=8, refresh="listed", real_steps=(0, 1, 4, 9))
    assert run(plan) == "CCxxCxxx"
    assert least_real_steps(plan) == [0, 1, 4]
    assert run(plan, start_step=3) == "CCxxx"


@pytest.mark.parametrize("name", REFRESH_POLICIES)
def test_a_resumed_trajectory_can_always_extrapolate(name: str) -> None:
    fields = {"real_steps": (0, 1, 9)} if name == "listed" else {}
    plan = Plan(num_inference_steps=30, handoff_step=30, refresh=name, skip_interval=3, **fields)
    assert run(plan, start_step=15).startswith("CC")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"refresh": "whim"}, "unknown refresh 'whim'"),
        ({"refresh": "fixed", "tolerance": 0.5}, "tolerance means nothing to refresh fixed"),
        ({"refresh": "always", "final_steps": 1}, "final_steps means nothing to refresh always"),
        ({"refresh": "easycache", "real_steps": (0, 1)}, "real_steps means nothing to refresh easycache"),
        ({"refresh": "listed"}, "must begin with 0 and 1, not with nothing: a predictor needs 2 real predictions"),
        ({"refresh": "listed", "real_steps": (0, 2)}, "must begin with 0 and 1, not with 0, 2"),
        ({"refresh": "always", "max_cloud_calls": 9}, "handoff_step 10 needs 10 cloud calls but max_cloud_calls is 9"),
        ({"refresh": "easycache", "max_cloud_calls": 1, "skip_interval": 4}, "needs 3 cloud calls but"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        make_refresh(Plan(num_inference_steps=10, handoff_step=10, **fields))
    assert "\n" not in str(caught.value)


def test_a_listed_plan_without_a_cloud_needs_no_steps() -> None:
    assert run(Plan(num_inference_steps=10, handoff_step=0, refresh="listed")) == ""


def test_every_policy_asks_for_a_measure_that_exists() -> None:
    plans = {name: Plan(num_inference_steps=9, handoff_step=0, refresh=name) for name in REFRESH_POLICIES}
    measures = {name: make_refresh(plan).measure for name, plan in plans.items()}
    assert {measure for measure in measures.values() if measure} == set(MEASURES)
    assert [name for name, measure in measures.items() if measure] == ADAPTIVE


def test_always_is_always() -> None:
    assert make_refresh(Plan(num_inference_steps=5, handoff_step=5)).decide(3) is Source.CLOUD
