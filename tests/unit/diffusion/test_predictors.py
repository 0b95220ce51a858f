import pytest
import torch

from diffusion.predictors import PREDICTORS, Predictor, make_predictor

# Uneven timesteps, as "trailing" and non-divisor step counts make them.
TIMESTEPS = [981.0, 961.0, 940.0, 921.0, 899.0, 881.0, 860.0, 838.0, 821.0, 799.0, 780.0]


def tensor(value: float) -> torch.Tensor:
    return torch.full((1, 2, 2, 2), value)


def worst_error(predictor: Predictor, real_steps: set[int], function) -> float:
    """Run a trajectory and return the largest error at a step that is not real."""
    worst = 0.0
    for step, timestep in enumerate(TIMESTEPS):
        if step in real_steps:
            predictor.observe(step, timestep, tensor(function(timestep)))
        else:
            worst = max(worst, float((predictor.predict(step, timestep) - function(timestep)).abs().max()))
    return worst


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_every_predictor_is_exact_on_constants(name, smoothing):
    assert worst_error(make_predictor(name, smoothing=smoothing), {0, 1, 4, 8}, lambda t: 0.7) == 0.0


def test_linear_is_exact_on_lines_in_the_timestep_at_uneven_steps():
    assert worst_error(make_predictor("linear"), {0, 1, 4, 8}, lambda t: 0.25 * t - 3) < 1e-4


def test_linear_uses_only_the_last_two_real_predictions():
    predictor = make_predictor("linear")
    for step, value in ((0, 100.0), (3, 1.0), (5, 2.0)):
        predictor.observe(step, TIMESTEPS[step], tensor(value))
    slope = 1.0 / (TIMESTEPS[5] - TIMESTEPS[3])
    expected = tensor(2.0 + slope * (TIMESTEPS[6] - TIMESTEPS[5]))
    assert torch.allclose(predictor.predict(6, TIMESTEPS[6]), expected, atol=1e-6)


def test_reuse_repeats_the_last_real_prediction():
    predictor = make_predictor("reuse")
    predictor.observe(0, TIMESTEPS[0], tensor(1.0))
    predictor.observe(3, TIMESTEPS[3], tensor(5.0))
    assert torch.equal(predictor.predict(6, TIMESTEPS[6]), tensor(5.0))


def test_ecdiff_follows_the_paper_on_a_hand_computed_example():
    # p = 3, k = 2, a = 0.5: real at 0, 1, 2, 5, 8.
    predictor = make_predictor("ecdiff", smoothing=0.5)
    for step, value in ((0, 1.0), (1, 2.0), (2, 4.0)):
        predictor.observe(step, TIMESTEPS[step], tensor(value))
    assert torch.equal(predictor.predict(3, TIMESTEPS[3]), tensor(6.0))  # G = 4 - 2, not smoothed
    assert torch.equal(predictor.predict(4, TIMESTEPS[4]), tensor(8.0))
    predictor.observe(5, TIMESTEPS[5], tensor(9.0))  # G = 0.5 * (9 - 8): against the extrapolated one
    assert torch.equal(predictor.predict(6, TIMESTEPS[6]), tensor(9.5))
    assert torch.equal(predictor.predict(7, TIMESTEPS[7]), tensor(10.0))
    predictor.observe(8, TIMESTEPS[8], tensor(8.0))  # G = 0.5 * (8 - 10)
    assert torch.equal(predictor.predict(9, TIMESTEPS[9]), tensor(7.0))


def test_ecdiff_with_smoothing_0_reuses_after_the_warm_up_gradient():
    predictor = make_predictor("ecdiff", smoothing=0.0)
    for step, value in ((0, 1.0), (1, 2.0)):
        predictor.observe(step, TIMESTEPS[step], tensor(value))
    assert torch.equal(predictor.predict(2, TIMESTEPS[2]), tensor(3.0))
    predictor.observe(3, TIMESTEPS[3], tensor(7.0))
    assert torch.equal(predictor.predict(5, TIMESTEPS[5]), tensor(7.0))


def test_ecdiff_with_skip_interval_0_never_smooths():
    # Every step is real, so nothing is extrapolated; only the measured error sees the gradient.
    predictor = make_predictor("ecdiff", smoothing=0.3)
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        predictor.observe(step, TIMESTEPS[step], tensor(value))
    assert torch.equal(predictor.predict(4, TIMESTEPS[4]), tensor(12.0))


@pytest.mark.parametrize("name", PREDICTORS)
def test_asking_does_not_change_the_answer(name):
    asked, silent = make_predictor(name, smoothing=0.3), make_predictor(name, smoothing=0.3)
    for step, value in ((0, 1.0), (1, 2.0), (4, 4.0), (6, 3.0)):
        for predictor in (asked, silent):
            predictor.observe(step, TIMESTEPS[step], tensor(value))
        if step:
            asked.predict(step + 1, TIMESTEPS[step + 1])
            asked.predict(step + 3, TIMESTEPS[step + 3])
    assert torch.equal(asked.predict(8, TIMESTEPS[8]), silent.predict(8, TIMESTEPS[8]))


@pytest.mark.parametrize("name", PREDICTORS)
def test_observed_tensors_are_never_written_to(name):
    predictor = make_predictor(name, smoothing=0.3)
    given = [tensor(float(value)) for value in (1, 2, 4)]
    for step, real in zip((0, 1, 4), given, strict=True):
        predictor.observe(step, TIMESTEPS[step], real)
    predictor.predict(6, TIMESTEPS[6])
    assert [float(real.max()) for real in given] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("name", PREDICTORS)
def test_memory_does_not_grow_with_the_number_of_steps(name):
    predictor = make_predictor(name, smoothing=0.3)
    for step in range(200):
        predictor.observe(step, 1000.0 - step, tensor(float(step)))
    assert sum(isinstance(value, torch.Tensor) for value in vars(predictor).values()) <= 2


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_fresh_predictor_knows_nothing_of_an_earlier_request(name):
    first = make_predictor(name, smoothing=0.3)
    for step in range(5):
        first.observe(step, TIMESTEPS[step], tensor(float(step)))
    with pytest.raises(ValueError, match="real predictions before it can extrapolate"):
        make_predictor(name, smoothing=0.3).predict(5, TIMESTEPS[5])


@pytest.mark.parametrize("name", PREDICTORS)
def test_min_observations_is_exactly_what_predict_needs(name):
    predictor = make_predictor(name, smoothing=0.3)
    for step in range(predictor.min_observations):
        with pytest.raises(ValueError, match=f"needs {predictor.min_observations} real"):
            predictor.predict(step, TIMESTEPS[step])
        predictor.observe(step, TIMESTEPS[step], tensor(1.0))
    assert torch.equal(predictor.predict(9, TIMESTEPS[9]), tensor(1.0))


def test_unknown_predictor_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: reuse, ecdiff, linear"):
        make_predictor("crystal-ball")
