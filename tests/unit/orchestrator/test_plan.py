"""Plans: what each mode means, and what is refused."""

from __future__ import annotations

import pytest

from diffusion.predictors import PREDICTORS as REGISTRY
from orchestrator.plan import PREDICTORS, PlanOptions, cloud_calls, make_plan, parse_split, parse_steps, step_sources
from wire.messages import Plan, Source


def test_every_planned_predictor_exists() -> None:
    assert set(PREDICTORS) == set(REGISTRY)


def letters(plan: Plan) -> str:
    return "".join("?" if source is None else source.letter for source in step_sources(plan))


def test_ecdiff_plan_at_50_steps_is_the_papers() -> None:
    plan = make_plan("ecdiff", PlanOptions())
    assert letters(plan) == "CCCCCCCxxCxxCxxCxxCxxCxxCxxCxxCxxCxxCeeeeeeeeeeeee"
    assert (plan.smoothing, plan.predictor) == (0.3, "ecdiff")


@pytest.mark.parametrize(
    ("warmup_steps", "skip_interval", "handoff_step", "num_cloud"),
    [(7, 2, 37, 17), (7, 2, 50, 21), (6, 5, 50, 13), (10, 3, 50, 20)],
)
def test_ecdiff_call_counts_are_the_papers(
    warmup_steps: int, skip_interval: int, handoff_step: int, num_cloud: int
) -> None:
    options = PlanOptions(warmup_steps=warmup_steps, skip_interval=skip_interval, handoff_step=handoff_step)
    assert step_sources(make_plan("ecdiff", options)).count(Source.CLOUD) == num_cloud


def test_ecdiff_parameters_scale_with_the_step_count() -> None:
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=20))
    assert (plan.warmup_steps, plan.skip_interval, plan.handoff_step) == (3, 2, 15)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("mode", ["cloud", "edge", "split", "ecdiff"])
def test_every_mode_has_a_plan_for_any_step_count(mode: str, steps: int) -> None:
    assert len(step_sources(make_plan(mode, PlanOptions(num_inference_steps=steps)))) == steps


def test_cloud_and_edge_use_one_model() -> None:
    assert letters(make_plan("cloud", PlanOptions(num_inference_steps=5))) == "CCCCC"
    assert letters(make_plan("edge", PlanOptions(num_inference_steps=5))) == "eeeee"


def test_split_hands_off_at_four_fifths_or_where_told() -> None:
    assert letters(make_plan("split", PlanOptions(num_inference_steps=10))) == "CCCCCCCCee"
    assert letters(make_plan("split", PlanOptions(num_inference_steps=10, handoff_step=3))) == "CCCeeeeeee"


def test_handoff_below_the_warmup_and_zero_smoothing_and_zero_skip_are_legal() -> None:
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=10, handoff_step=1, warmup_steps=5))
    assert letters(plan) == "Ceeeeeeeee"
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=6, smoothing=0.0, skip_interval=0, handoff_step=6))
    assert letters(plan) == "CCCCCC"


def test_max_cloud_calls_hands_off_before_the_call_that_would_exceed_it() -> None:
    plan = make_plan("ecdiff", PlanOptions(max_cloud_calls=10))
    assert letters(plan) == "CCCCCCCxxCxxCxxCxx" + "e" * 32
    assert (plan.max_cloud_calls, cloud_calls(plan)) == (10, (10, 10))
    assert make_plan("cloud", PlanOptions(max_cloud_calls=0)).handoff_step == 0


def test_a_policy_that_adapts_hands_off_where_its_longest_intervals_need_a_call_too_many() -> None:
    options = {"num_inference_steps": 20, "warmup_steps": 3, "skip_interval": 4, "handoff_step": None}
    assert letters(make_plan("ecdiff", PlanOptions(**options, refresh="easycache"))) == "CCC" + "?" * 12 + "e" * 5
    plan = make_plan("ecdiff", PlanOptions(**options, refresh="easycache", max_cloud_calls=4))
    assert letters(plan) == "CCC" + "?" * 9 + "e" * 8
    assert (plan.max_cloud_calls, cloud_calls(plan)) == (4, (4, 4))


def test_a_budget_below_the_warmup_hands_off_within_it() -> None:
    for refresh in ("fixed", "growing", "embedded-error", "easycache", "third-difference"):
        plan = make_plan("ecdiff", PlanOptions(refresh=refresh, warmup_steps=6, max_cloud_calls=3))
        assert letters(plan) == "CCC" + "e" * 47


def test_a_budget_beyond_every_step_is_no_smaller_bound() -> None:
    assert make_plan("ecdiff", PlanOptions(max_cloud_calls=10**30)).max_cloud_calls == 50


def test_listed_steps_choose_their_refresh() -> None:
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=10, handoff_step=8, real_steps=(0, 1, 5, 9)))
    assert plan.refresh == "listed"
    assert letters(plan) == "CCxxxCxxee"
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=10, real_steps=(0, 1, 5), max_cloud_calls=2))
    assert letters(plan) == "CCxxxeeeee"


def test_final_steps_are_those_of_the_schedule_not_of_the_handoff() -> None:
    options = {"num_inference_steps": 12, "warmup_steps": 2, "skip_interval": 9, "final_steps": 2}
    assert letters(make_plan("ecdiff", PlanOptions(**options, handoff_step=12))) == "CCxxxxxxxxCC"
    assert letters(make_plan("ecdiff", PlanOptions(**options, handoff_step=11))) == "CCxxxxxxxxCe"
    assert letters(make_plan("ecdiff", PlanOptions(**options, handoff_step=9))) == "CCxxxxxxxeee"


def test_max_cloud_calls_never_moves_an_explicit_handoff_step() -> None:
    with pytest.raises(ValueError, match="handoff_step 40 needs 40 cloud calls but max_cloud_calls is 5"):
        make_plan("split", PlanOptions(handoff_step=40, max_cloud_calls=5))


@pytest.mark.parametrize(
    ("mode", "options", "text"),
    [
        ("nearly", PlanOptions(), "unknown mode 'nearly'"),
        ("ecdiff", PlanOptions(warmup_steps=1), "warmup_steps must be at least 2"),
        ("ecdiff", PlanOptions(skip_interval=-1), "skip_interval must not be negative"),
        ("ecdiff", PlanOptions(smoothing=float("nan")), "smoothing must lie in"),
        ("ecdiff", PlanOptions(refresh="sometimes"), "unknown refresh 'sometimes'"),
        ("ecdiff", PlanOptions(predictor="oracle"), "unknown predictor 'oracle'"),
        ("split", PlanOptions(handoff_step=51), "handoff_step must lie in 0..50"),
        ("split", PlanOptions(handoff_step=-1), "handoff_step must lie in 0..50"),
        ("cloud", PlanOptions(num_inference_steps=0), "num_inference_steps must be at least 1"),
        ("cloud", PlanOptions(num_inference_steps=1001), "num_inference_steps must be at most 1000, not 1001"),
        ("edge", PlanOptions(num_inference_steps=10**30), "num_inference_steps must be at most 1000"),
        ("ecdiff", PlanOptions(skip_interval=2**31), "skip_interval must be at most 1000"),
        ("cloud", PlanOptions(warmup_steps=3), "warmup_steps belongs to modes ecdiff and adaptive"),
        ("split", PlanOptions(tolerance=0.1), "tolerance belongs to modes ecdiff and adaptive"),
        (
            "ecdiff",
            PlanOptions(tolerance=0.1),
            "tolerance means nothing to refresh fixed, only to embedded-error, third-",
        ),
        (
            "ecdiff",
            PlanOptions(refresh="easycache", tolerance=-0.1),
            "tolerance must be a number of at least 0, not -0.1",
        ),
        ("ecdiff", PlanOptions(refresh="easycache", tolerance=float("nan")), "tolerance must be a number"),
        ("ecdiff", PlanOptions(refresh="always", skip_interval=3), "skip_interval means nothing to refresh always"),
        ("ecdiff", PlanOptions(refresh="listed", warmup_steps=3), "warmup_steps means nothing to refresh listed"),
        (
            "ecdiff",
            PlanOptions(refresh="fixed", real_steps=(0, 1)),
            "real_steps means nothing to refresh fixed, only to l",
        ),
        (
            "ecdiff",
            PlanOptions(refresh="listed"),
            "real_steps of refresh listed must begin with 0 and 1, not with nothing",
        ),
        ("ecdiff", PlanOptions(real_steps=(0, 1, 50)), r"real_steps must lie in 0\.\.49, not 50"),
        ("ecdiff", PlanOptions(real_steps=(0, 1, 4, 3)), "real_steps must rise"),
        (
            "ecdiff",
            PlanOptions(predictor="linear", smoothing=0.3),
            "smoothing belongs to predictor ecdiff, not to linear",
        ),
        (
            "ecdiff",
            PlanOptions(refresh="easycache", handoff_step=50, max_cloud_calls=5),
            "handoff_step 50 needs 9 cloud calls but max_cloud_calls is 5",
        ),
        ("edge", PlanOptions(handoff_step=3), "mode edge has no handoff"),
        ("cloud", PlanOptions(max_cloud_calls=-1), "max_cloud_calls must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(mode: str, options: PlanOptions, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_plan(mode, options)


def test_split_is_read_as_hybrid_sd_writes_it() -> None:
    assert parse_split("40,10") == (40, 10)
    assert parse_split("0, 5") == (0, 5)


def test_steps_are_read_from_a_list() -> None:
    assert parse_steps("0,1, 5") == (0, 1, 5)
    for text in ("", "0,,1", "-1", "0;1", "x"):
        with pytest.raises(ValueError, match="steps must be whole numbers with commas between"):
            parse_steps(text)


@pytest.mark.parametrize("text", ["40", "40,", "a,b", "-1,5", "0,0", "1,2,3", ""])
def test_a_split_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="steps must"):
        parse_split(text)


# ------------------------------------------------------------------------------ from a picture


@pytest.mark.parametrize(
    ("steps", "strength", "start_step"),
    [(50, None, 0), (50, 1.0, 0), (50, 0.6, 20), (50, 0.3, 35), (20, 0.26, 15), (50, 0.58, 22), (1, 1.0, 0)],
)
def test_strength_says_the_first_step_as_in_diffusers(steps: int, strength: float | None, start_step: int) -> None:
    assert PlanOptions(num_inference_steps=steps, strength=strength).start_step == start_step


def test_a_plan_of_fewer_steps_hands_off_where_the_mode_does_or_at_the_start() -> None:
    assert make_plan("ecdiff", PlanOptions(strength=0.6)).handoff_step == 37
    assert make_plan("ecdiff", PlanOptions(strength=0.2)).handoff_step == 40
    assert make_plan("edge", PlanOptions(strength=0.2)).handoff_step == 40


def test_a_bound_on_calls_counts_from_the_start() -> None:
    assert make_plan("cloud", PlanOptions(strength=0.6, max_cloud_calls=10)).handoff_step == 30
    plan = make_plan("ecdiff", PlanOptions(strength=0.6, max_cloud_calls=8))
    sources = step_sources(plan, start_step=20)[20 : plan.handoff_step]
    assert sources.count(Source.CLOUD) == 8
    assert sources[:7] == [Source.CLOUD] * 7


def test_a_handoff_before_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"handoff_step 19 lies before step 20, where strength 0\.6 starts"):
        make_plan("split", PlanOptions(strength=0.6, handoff_step=19))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan"), 0.019])
def test_a_strength_that_leaves_no_step_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        make_plan("cloud", PlanOptions(strength=strength))
