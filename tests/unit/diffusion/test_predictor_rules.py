"""What each predictor is exact on, and what its rule makes of numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predictor_runs import OWN_TERMS, TIMESTEPS, latents_at, make, schedule, tensor, worst_error

from diffusion.predictors import PREDICTORS, Predictor
from diffusion.predictors.history import Chebyshev, Trend

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
