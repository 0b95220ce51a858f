"""What holds for all predictors: any schedule and shape, no state but what they observed, little cost."""

import time

import pytest
import torch
from predictor_runs import OWN_TERMS, TIMESTEPS, latents_at, make, schedule, tensor
from torch import Tensor

from diffusion.predictors import COMPANIONS, PREDICTORS, make_predictor
from diffusion.schedule import Schedule

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
