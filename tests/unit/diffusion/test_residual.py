import pytest
import torch
from torch import Tensor

from diffusion.predictors import make_predictor
from diffusion.residual import Residual
from diffusion.schedule import Schedule

SHAPE = (2, 3, 4, 4)
STEPS = 12


@pytest.fixture
def schedule() -> Schedule:
    timesteps = tuple(float(t) for t in range(900, 900 - 70 * STEPS, -70))
    alphas = tuple(0.3 + 0.05 * i for i in range(STEPS))
    return Schedule(timesteps=timesteps, alphas=alphas, sigmas=(*((1 - a * a) ** 0.5 for a in alphas), 0.0))


def make_residual(schedule: Schedule, name: str = "linear", fade: list[float] | None = None) -> Residual:
    return Residual(make_predictor(name, schedule, prediction_type="epsilon"), fade)


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_edge_stands_alone_until_the_cloud_was_seen(schedule: Schedule) -> None:
    edge = draw(0)
    residual = make_residual(schedule)
    assert residual.predict(3, edge) is None
    assert torch.equal(residual.correct(3, edge, edge), edge)


def test_one_observation_is_reused(schedule: Schedule) -> None:
    cloud, edge, later = draw(0), draw(1), draw(2)
    residual = make_residual(schedule)
    residual.observe(2, cloud, edge, later)
    torch.testing.assert_close(residual.correct(9, later, later), later + cloud - edge)


@pytest.mark.parametrize(("name", "order"), [("reuse", 0), ("linear", 1), ("quadratic", 2)])
def test_correction_is_exact_where_the_residual_is_a_polynomial(schedule: Schedule, name: str, order: int) -> None:
    coefficients = [draw(seed) for seed in range(order + 1)]

    def true(step: int) -> Tensor:
        time = schedule.timesteps[step] / 1000
        return sum((coefficient * time**power for power, coefficient in enumerate(coefficients)), torch.zeros(SHAPE))

    residual = make_residual(schedule, name)
    for step in (0, 1, 4, 6):  # uneven, as corrections are
        edge = draw(100 + step)
        residual.observe(step, edge + true(step), edge, edge)
    for step in (7, 11):
        edge = draw(200 + step)
        torch.testing.assert_close(residual.correct(step, edge, edge), edge + true(step), rtol=1e-3, atol=1e-3)


def test_fade_scales_the_residual_step_by_step(schedule: Schedule) -> None:
    cloud, edge = draw(0), draw(1)
    residual = make_residual(schedule, "reuse", [0.0] * 5 + [0.5] + [1.0] * 6)
    residual.observe(1, cloud, edge, edge)
    for step, share in ((4, 0.0), (5, 0.5), (6, 1.0)):
        torch.testing.assert_close(residual.correct(step, edge, edge), edge + share * (cloud - edge))


def test_correcting_changes_neither_the_inputs_nor_later_answers(schedule: Schedule) -> None:
    cloud, edge, latents = draw(0), draw(1), draw(2)
    residual = make_residual(schedule)
    residual.observe(0, cloud, edge, latents)
    residual.observe(3, edge, cloud, latents)
    before = edge.clone()
    first = residual.correct(5, edge, latents)
    assert torch.equal(edge, before)
    assert torch.equal(residual.correct(5, edge, latents), first)


def test_beyond_its_reach_the_residual_goes_to_nothing(schedule: Schedule) -> None:
    residual = Residual(make_predictor("linear", schedule, prediction_type="epsilon"), reach=4)
    for step, value in ((0, 1.0), (1, 1.0)):
        residual.observe(step, torch.full((1, 1, 1, 1), value), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    added = [
        float(residual.correct(step, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))) for step in range(2, STEPS)
    ]
    assert added == pytest.approx([1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
