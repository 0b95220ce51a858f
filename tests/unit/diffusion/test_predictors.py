"""What each predictor is exact on, and what holds for all of them."""

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.prediction_types import convert_prediction
from diffusion.predictors import COMPANIONS, PREDICTORS, Predictor, make_predictor
from diffusion.predictors.history import Chebyshev, Trend
from diffusion.schedule import Schedule

# Uneven timesteps, as "trailing" and non-divisor step counts make them.
TIMESTEPS = (981.0, 961.0, 940.0, 921.0, 899.0, 881.0, 860.0, 838.0, 821.0, 799.0, 780.0)
OWN_TERMS = {"epsilon-linear": "epsilon", "x0-linear": "sample"}
"""Predictors that extrapolate in other terms than the scheduler's."""


def schedule(timesteps: tuple[float, ...] = TIMESTEPS) -> Schedule:
    """alpha = cos, sigma = sin of the timestep's share of a right angle; no signal at 1000."""
    angles = [timestep / 1000 * math.pi / 2 for timestep in timesteps]
    return Schedule(
        timesteps=timesteps,
        alphas=tuple(0.0 if angle == math.pi / 2 else math.cos(angle) for angle in angles),
        sigmas=(*(math.sin(angle) for angle in angles), 0.0),
    )


def make(
    name: str,
    *,
    timesteps: tuple[float, ...] = TIMESTEPS,
    consumed: str = "v_prediction",
    smoothing: float = 0.3,
) -> Predictor:
    return make_predictor(name, schedule(timesteps), prediction_type=consumed, smoothing=smoothing)


def tensor(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((1, 2, 2, 2), value, dtype=dtype)


def latents_at(step: int) -> Tensor:
    """Latents that move from step to step, along no polynomial."""
    return tensor(math.sin(7.0 * step))


def worst_error(
    predictor: Predictor,
    real_steps: set[int],
    function,
    *,
    timesteps: tuple[float, ...] = TIMESTEPS,
    own: str = "v_prediction",
    consumed: str = "v_prediction",
) -> float:
    """Run a trajectory and return the largest error at a step that is not real.

    `function` maps a step to the prediction of type `own`; the predictor is fed and asked in type `consumed`. In
    float64, so that a wrong rule cannot pass for rounding.
    """
    where, worst = schedule(timesteps), 0.0
    for step in range(len(timesteps)):
        levels = {"alpha": where.alphas[step], "sigma": where.sigmas[step]}
        expected = tensor(function(step), torch.float64)
        if step in real_steps:
            real = convert_prediction(expected, latents_at(step), source=own, target=consumed, **levels)
            predictor.observe(step, real, latents_at(step))
        else:
            predicted = predictor.predict(step, latents_at(step))
            answer = convert_prediction(predicted, latents_at(step), source=consumed, target=own, **levels)
            worst = max(worst, float((answer - expected).abs().max()))
    return worst


# ------------------------------------------------------------------------------ exactness

GAPS = st.lists(st.integers(1, 60), min_size=5, max_size=14)
COEFFICIENTS = st.lists(st.floats(-3, 3), min_size=5, max_size=5)
DEGREES = {"reuse": 0, "linear": 1, "etc": 1, "epsilon-linear": 1, "quadratic": 2}


def uneven(gaps: list[int]) -> tuple[float, ...]:
    timesteps = [990.0]
    for gap in gaps:
        timesteps.append(timesteps[-1] - gap)
    return tuple(timesteps)


def polynomial(coefficients: list[float], coordinates: tuple[float, ...]):
    return lambda step: sum(value * coordinates[step] ** power for power, value in enumerate(coefficients))


@pytest.mark.parametrize(("name", "degree"), DEGREES.items())
@settings(max_examples=40, deadline=None)
@given(gaps=GAPS, coefficients=COEFFICIENTS, data=st.data())
def test_polynomials_in_the_timestep_are_met_exactly_at_uneven_steps(name, degree, gaps, coefficients, data):
    timesteps = uneven(gaps)
    real = {0, 1, 2} | data.draw(st.sets(st.integers(3, len(gaps))))
    function = polynomial(coefficients[: degree + 1], tuple(timestep / 1000 for timestep in timesteps))
    own = OWN_TERMS.get(name, "v_prediction")
    # What is converted meets latents in float32.
    bound = 1e-3 if name in OWN_TERMS else 1e-6
    assert worst_error(make(name, timesteps=timesteps), real, function, timesteps=timesteps, own=own) < bound


@settings(max_examples=40, deadline=None)
@given(gaps=GAPS, coefficients=COEFFICIENTS, data=st.data())
@pytest.mark.parametrize("consumed", ["epsilon", "v_prediction", "sample"])
def test_x0_linear_is_exact_on_x0_linear_in_the_log_snr_whatever_the_scheduler_consumes(
    consumed, gaps, coefficients, data
):
    timesteps = uneven(gaps)
    real = {0, 1} | data.draw(st.sets(st.integers(2, len(gaps))))
    where = schedule(timesteps)
    log_snrs = tuple(math.log(alpha / sigma) for alpha, sigma in zip(where.alphas, where.sigmas[:-1], strict=True))
    function = polynomial(coefficients[:2], log_snrs)
    predictor = make("x0-linear", timesteps=timesteps, consumed=consumed)
    assert worst_error(predictor, real, function, timesteps=timesteps, own="sample", consumed=consumed) < 1e-3


@pytest.mark.parametrize("consumed", ["epsilon", "v_prediction", "sample"])
def test_epsilon_linear_is_exact_on_epsilon_linear_in_the_timestep_whatever_the_scheduler_consumes(consumed):
    predictor, line = make("epsilon-linear", consumed=consumed), polynomial([-3, 0.01], TIMESTEPS)
    assert worst_error(predictor, {0, 1, 4, 8}, line, own="epsilon", consumed=consumed) < 1e-6


@pytest.mark.parametrize(("name", "degree"), [*DEGREES.items(), ("chebyshev", 0), ("ecdiff", 0)])
def test_the_degree_claimed_is_met_and_the_next_is_missed(name, degree):
    own = OWN_TERMS.get(name, "v_prediction")
    for power in range(4):
        function = polynomial([0.0] * power + [1.0], tuple((timestep - 900) / 100 for timestep in TIMESTEPS))
        error = worst_error(make(name), {0, 1, 2, 6}, function, own=own)
        assert (error < 1e-6) == (power <= degree), (power, error)


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_every_predictor_is_exact_on_constants(name, smoothing):
    own = OWN_TERMS.get(name, "v_prediction")
    assert worst_error(make(name, smoothing=smoothing), {0, 1, 4, 8}, lambda step: 0.7, own=own) < 1e-6


@settings(max_examples=40, deadline=None)
@given(gaps=GAPS, coefficients=COEFFICIENTS)
def test_chebyshev_without_ridge_and_line_is_exact_on_degree_4(gaps, coefficients):
    timesteps = uneven(gaps)
    predictor = Chebyshev(schedule(timesteps), ridge=1e-14, weight=1.0)
    # Coordinates over the whole trajectory, as its own are: elsewhere the powers are no well-conditioned question.
    span = timesteps[0] - timesteps[-1]
    function = polynomial(coefficients, tuple((timestep - timesteps[-1]) / span for timestep in timesteps))
    assert (
        worst_error(predictor, set(range(5)), function, timesteps=timesteps) < 1e-2 * (1 + max(gaps) / min(gaps)) ** 4
    )


def test_the_trend_is_the_moving_average_of_the_slopes():
    predictor = Trend(schedule((900.0, 890.0, 860.0, 850.0)), weight=0.25)
    for step, value in ((0, 0.0), (1, 10.0), (2, 100.0)):
        predictor.observe(step, tensor(value), latents_at(step))
    # Slopes -1 and -3 a timestep: 0.75 * -1 + 0.25 * -3 = -1.5, ten timesteps on.
    assert torch.allclose(predictor.predict(3, latents_at(3)), tensor(115.0))


def test_linear_uses_only_the_last_two_real_predictions():
    predictor = make("linear")
    for step, value in ((0, 100.0), (3, 1.0), (5, 2.0)):
        predictor.observe(step, tensor(value), latents_at(step))
    slope = 1.0 / (TIMESTEPS[5] - TIMESTEPS[3])
    expected = tensor(2.0 + slope * (TIMESTEPS[6] - TIMESTEPS[5]))
    assert torch.allclose(predictor.predict(6, latents_at(6)), expected, atol=1e-6)


def test_quadratic_is_a_line_until_the_third_real_prediction():
    quadratic, linear = make("quadratic"), make("linear")
    for step, value in ((0, 1.0), (1, 3.0)):
        for predictor in (quadratic, linear):
            predictor.observe(step, tensor(value), latents_at(step))
    assert torch.equal(quadratic.predict(2, latents_at(2)), linear.predict(2, latents_at(2)))


def test_reuse_repeats_the_last_real_prediction():
    predictor = make("reuse")
    predictor.observe(0, tensor(1.0), latents_at(0))
    predictor.observe(3, tensor(5.0), latents_at(3))
    assert torch.equal(predictor.predict(6, latents_at(6)), tensor(5.0))


# ------------------------------------------------------------------------------ the paper's rule


def test_ecdiff_follows_the_paper_on_a_hand_computed_example():
    # p = 3, k = 2, a = 0.5: real at 0, 1, 2, 5, 8.
    predictor = make("ecdiff", smoothing=0.5)
    for step, value in ((0, 1.0), (1, 2.0), (2, 4.0)):
        predictor.observe(step, tensor(value), latents_at(step))
    assert torch.equal(predictor.predict(3, latents_at(3)), tensor(6.0))  # G = 4 - 2, not smoothed
    assert torch.equal(predictor.predict(4, latents_at(4)), tensor(8.0))
    predictor.observe(5, tensor(9.0), latents_at(5))  # G = 0.5 * (9 - 8): against the extrapolated one
    assert torch.equal(predictor.predict(6, latents_at(6)), tensor(9.5))
    assert torch.equal(predictor.predict(7, latents_at(7)), tensor(10.0))
    predictor.observe(8, tensor(8.0), latents_at(8))  # G = 0.5 * (8 - 10)
    assert torch.equal(predictor.predict(9, latents_at(9)), tensor(7.0))


def test_ecdiff_with_smoothing_0_reuses_after_the_warm_up_gradient():
    predictor = make("ecdiff", smoothing=0.0)
    for step, value in ((0, 1.0), (1, 2.0)):
        predictor.observe(step, tensor(value), latents_at(step))
    assert torch.equal(predictor.predict(2, latents_at(2)), tensor(3.0))
    predictor.observe(3, tensor(7.0), latents_at(3))
    assert torch.equal(predictor.predict(5, latents_at(5)), tensor(7.0))


def test_ecdiff_with_skip_interval_0_never_smooths():
    # Every step is real, so nothing is extrapolated; only the measured error sees the gradient.
    predictor = make("ecdiff", smoothing=0.3)
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        predictor.observe(step, tensor(value), latents_at(step))
    assert torch.equal(predictor.predict(4, latents_at(4)), tensor(12.0))


# ------------------------------------------------------------------------------ stability


def largest_answer(predictor: Predictor, timesteps: tuple[float, ...], gap: int) -> float:
    """Return the largest prediction when the real ones are random signs, the roughest that stays within -1..1."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for step in range(len(timesteps)):
        latents = torch.zeros(1, 4, 8, 8)
        if step < 3 or step % gap == 0:
            predictor.observe(step, torch.randn(1, 4, 8, 8, generator=generator).sign(), latents)
        else:
            largest = max(largest, float(predictor.predict(step, latents).abs().max()))
    return largest


@pytest.mark.parametrize("gap", [3, 10, 30])
@pytest.mark.parametrize(
    ("name", "degree"), [(name, DEGREES.get(name, 1)) for name in PREDICTORS if name not in ("ecdiff", "x0-linear")]
)
def test_predictions_stay_bounded_over_long_gaps_and_do_not_feed_on_themselves(name, degree, gap):
    # 400 steps: a rule that took its own output in would have grown by many powers. The bound is the sum of the
    # absolute Lagrange weights, `gap` steps past nodes that lie 1 step apart.
    timesteps = tuple(900.0 - 2 * step for step in range(400))
    bound = {0: 1.0, 1: 1 + 2 * gap, 2: 1 + 4 * gap + 2 * gap**2}[degree]
    assert largest_answer(make(name, timesteps=timesteps), timesteps, gap) <= bound


def test_ecdiffs_rule_is_bounded_below_the_papers_limit_and_grows_above_it():
    timesteps = tuple(900.0 - 2 * step for step in range(400))
    # k = 2: bounded for smoothing * 2 < 1.
    assert largest_answer(make("ecdiff", timesteps=timesteps, smoothing=0.3), timesteps, 3) < 10
    assert largest_answer(make("ecdiff", timesteps=timesteps, smoothing=0.7), timesteps, 3) > 1e6


# ------------------------------------------------------------------------------ other schedules


@pytest.mark.parametrize("consumed", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", PREDICTORS)
def test_zero_terminal_snr_gives_finite_predictions(name, consumed):
    timesteps = (1000.0, 980.0, 950.0, 930.0, 900.0)
    assert schedule(timesteps).alphas[0] == 0.0
    predictor = make(name, timesteps=timesteps, consumed=consumed)
    for real in (0, 1, 3):
        predictor.observe(real, tensor(0.1 * real), latents_at(real))
        if real:
            assert predictor.predict(real + 1, latents_at(real + 1)).isfinite().all()


def test_x0_linear_reuses_x0_until_two_steps_with_a_signal_are_observed():
    timesteps = (1000.0, 980.0, 950.0, 930.0, 900.0)
    predictor = make("x0-linear", timesteps=timesteps, consumed="sample")
    for step, x0 in ((0, 5.0), (1, 2.0)):
        predictor.observe(step, tensor(x0), latents_at(step))
    assert torch.equal(predictor.predict(2, latents_at(2)), tensor(2.0))
    predictor.observe(2, tensor(3.0), latents_at(2))
    assert float(predictor.predict(3, latents_at(3)).min()) > 3.0


@pytest.mark.parametrize("name", OWN_TERMS)
@pytest.mark.parametrize("levels", [{"alphas": (0.0, 0.0, 0.5)}, {"sigmas": (1.0, 0.8, 0.0, 0.0)}], ids=str)
def test_a_schedule_without_signal_or_noise_where_conversion_needs_it_is_refused(name, levels):
    given = {"timesteps": (1000.0, 999.0, 500.0), "alphas": (0.0, 0.5, 0.8), "sigmas": (1.0, 0.8, 0.5, 0.0)} | levels
    with pytest.raises(ValueError, match="step without signal or noise"):
        make_predictor(name, Schedule(**given), prediction_type="v_prediction")


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_schedule_of_one_step_has_a_predictor(name):
    make(name, timesteps=(500.0,)).observe(0, tensor(1.0), latents_at(0))


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("shape", [(1, 32, 8, 8), (2, 4, 3, 8, 8)], ids=["pictures", "video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_have_the_shape_of_pictures_and_of_video_and_are_float32(name, shape, dtype):
    predictor = make(name)
    for step in (0, 1, 2, 5):
        generator = torch.Generator().manual_seed(step)
        real, latents = torch.randn(2, *shape, generator=generator)
        predictor.observe(step, real, latents.to(dtype))
    predicted = predictor.predict(7, torch.zeros(shape, dtype=dtype))
    assert predicted.shape == shape
    assert predicted.dtype == torch.float32


# ------------------------------------------------------------------------------ the interface


@pytest.mark.parametrize("name", PREDICTORS)
def test_asking_does_not_change_the_answer(name):
    asked, silent = make(name), make(name)
    for step, value in ((0, 1.0), (1, 2.0), (4, 4.0), (6, 3.0)):
        for predictor in (asked, silent):
            predictor.observe(step, tensor(value), latents_at(step))
        if step:
            asked.predict(step + 1, latents_at(step + 1))
            asked.predict(step + 3, latents_at(step + 3))
    assert torch.equal(asked.predict(8, latents_at(8)), silent.predict(8, latents_at(8)))


@pytest.mark.parametrize("name", PREDICTORS)
def test_observed_tensors_are_never_written_to(name):
    predictor = make(name)
    given = [tensor(float(value)) for value in (1, 2, 4)]
    latents = latents_at(3)
    for step, real in zip((0, 1, 4), given, strict=True):
        predictor.observe(step, real, latents)
        earlier = predictor.predict(5, latents).clone() if step else None
    predictor.predict(6, latents)
    assert earlier is not None
    assert [float(real.max()) for real in given] == [1.0, 2.0, 4.0]
    assert torch.equal(latents, latents_at(3))


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_prediction_is_not_changed_by_what_is_observed_later(name):
    predictor = make(name)
    for step in (0, 1):
        predictor.observe(step, tensor(float(step)), latents_at(step))
    predicted = predictor.predict(2, latents_at(2))
    kept = predicted.clone()
    predictor.observe(3, tensor(9.0), latents_at(3))
    assert torch.equal(predicted, kept)


def held_tensors(thing: object) -> int:
    if isinstance(thing, Tensor):
        return 1
    if isinstance(thing, list):
        return sum(map(held_tensors, thing))
    return sum(map(held_tensors, vars(thing).values())) if hasattr(thing, "observe") else 0


@pytest.mark.parametrize("name", PREDICTORS)
def test_memory_does_not_grow_with_the_number_of_steps(name):
    timesteps = tuple(999.0 - step for step in range(200))
    predictor = make(name, timesteps=timesteps)
    for step in range(200):
        predictor.observe(step, tensor(float(step)), latents_at(step))
        if step == 5:
            held = held_tensors(predictor)
    assert held_tensors(predictor) == held <= 8


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_fresh_predictor_knows_nothing_of_an_earlier_request(name):
    first = make(name)
    for step in range(5):
        first.observe(step, tensor(float(step)), latents_at(step))
    with pytest.raises(ValueError, match="real predictions before it can extrapolate"):
        make(name).predict(5, latents_at(5))


@pytest.mark.parametrize("name", PREDICTORS)
def test_min_observations_is_exactly_what_predict_needs_and_no_more_than_the_shortest_warm_up(name):
    predictor = make(name)
    for step in range(predictor.min_observations):
        with pytest.raises(ValueError, match=f"needs {predictor.min_observations} real"):
            predictor.predict(step, latents_at(step))
        predictor.observe(step, tensor(1.0), latents_at(step))
    assert predictor.predict(9, latents_at(9)).isfinite().all()
    assert predictor.min_observations <= 2


def test_every_predictor_has_a_companion_that_says_something_else():
    assert set(COMPANIONS) == set(PREDICTORS)
    for name, other in COMPANIONS.items():
        pair = [make(each, consumed="epsilon") for each in (name, other)]
        for step, value in ((0, 1.0), (1, 2.0), (3, 7.0)):
            for predictor in pair:
                predictor.observe(step, tensor(value), latents_at(step))
        assert not torch.allclose(pair[0].predict(5, latents_at(5)), pair[1].predict(5, latents_at(5))), name


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_costs_little_beside_a_cloud_step(name):
    # The bundled cloud model's step takes 40 ms on one core; best of some runs, since the machine is shared.
    predictor = make(name)
    real, latents = torch.randn(2, 1, 32, 8, 8)
    durations = []
    for step in range(len(TIMESTEPS)):
        start = time.perf_counter()
        predictor.observe(step, real, latents)
        if step:
            predictor.predict(step, latents)
        durations.append(time.perf_counter() - start)
    assert sorted(durations)[1] < 0.02 * 0.040


def test_unknown_predictor_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: reuse, ecdiff, linear, quadratic"):
        make("crystal-ball")
