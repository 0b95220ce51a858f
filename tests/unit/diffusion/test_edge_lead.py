"""The edge's half of a generation, on models whose answers are known in closed form: data that is normal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.edge_lead import EdgeLead, make_edge_lead
from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.schedulers import Stepper, scheduler_for
from diffusion.trajectory import StepResult, Trajectory, denoise

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = ["ddim", "dpmpp-2m", "unipc", "euler"]
TYPES = ["epsilon", "v_prediction", "sample"]
SHAPE = (2, 4, 4, 4)
STEPS = 12

Ask = Callable[[Tensor, float], Tensor]


def stepper(name: str = "ddim", **changes: object) -> Stepper:
    config = SD | {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": True} | changes
    return Stepper(*scheduler_for(name, config), STEPS)


def gaussian(ours: Stepper, deviation: float = 0.5, target: str | None = None) -> Ask:
    """Return E[x0 | x] = x * alpha * S^2 / (alpha^2 S^2 + sigma^2) as a network of type `target` would say it."""
    schedule, target = ours.schedule, target or ours.prediction_type

    def evaluate(model_input: Tensor, timestep: float) -> Tensor:
        i = schedule.timesteps.index(timestep)
        norm = math.hypot(schedule.alphas[i], schedule.sigmas[i])  # networks see latents that preserve variance
        alpha, sigma = schedule.alphas[i] / norm, schedule.sigmas[i] / norm
        x = model_input.float()
        denoised = x * alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return convert_prediction(denoised, x, source="sample", target=target, alpha=alpha, sigma=sigma)

    return evaluate


def less(evaluate: Ask, missing: Callable[[float], Tensor]) -> Ask:
    """Return a model that leaves something out that depends on time alone."""
    return lambda model_input, timestep: evaluate(model_input, timestep) - missing(timestep)


def lead_of(ours: Stepper, evaluate: Ask, **options: object) -> EdgeLead:
    return make_edge_lead(evaluate, ours, **{"prediction_type": ours.prediction_type, **options})


def cloud_leads(ours: Stepper, cloud: Ask, lead: EdgeLead | None, handoff_step: int) -> Trajectory:
    """Run the cloud's steps, every one of them real, with the edge as the shadow."""
    noise = draw_noise(SHAPE, 3) * ours.schedule.init_noise_sigma
    trajectory = Trajectory(noise, ours)
    for result in denoise(trajectory, asks(cloud), lambda step: True, stop_step=handoff_step):
        if lead is not None:
            lead.shadow(result.step_index, result.noise_pred, result.latents_before)
    return trajectory


def asks(evaluate: Ask) -> Callable[[Trajectory], Tensor]:
    return lambda at: evaluate(at.model_input(), at.timestep)


def all_cloud(name: str = "ddim", **changes: object) -> Tensor:
    ours = stepper(name, **changes)
    return cloud_leads(ours, gaussian(ours), None, STEPS).latents


def finish(lead: EdgeLead, at: Trajectory, cloud: Ask, corrections: frozenset[int] | set[int] = frozenset()) -> Tensor:
    """Let the edge lead to the end, with the cloud's answer at some steps."""
    lead.take_over(at)
    while lead.run_to_call(lambda step, disagreement: step in corrections, lambda result: None):
        lead.think()
        lead.advance(asks(cloud)(at))
    return at.latents


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ beside the cloud, and after it


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("residual", [None, "linear", "chebyshev"])
@pytest.mark.parametrize("handoff_step", [0, 5, STEPS])
def test_an_edge_that_equals_the_cloud_changes_not_one_bit(name, residual, handoff_step):
    ours = stepper(name)
    lead = lead_of(ours, gaussian(ours), residual=residual)
    at = cloud_leads(ours, gaussian(ours), lead, handoff_step)
    assert torch.equal(finish(lead, at, gaussian(ours)), all_cloud(name))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("edge_type", TYPES)
def test_without_residual_and_corrections_it_is_the_plain_split(name, edge_type):
    ours, theirs = stepper(name), stepper(name)
    at = cloud_leads(ours, gaussian(ours), None, 7)
    lead = lead_of(ours, gaussian(ours, 0.8, edge_type), prediction_type=edge_type)
    plain = cloud_leads(theirs, gaussian(theirs), None, 7)
    edge = asks(gaussian(theirs, 0.8, edge_type))
    list(denoise(plain, edge, lambda step: True, stop_step=STEPS, prediction_type=edge_type))
    assert torch.equal(finish(lead, at, gaussian(ours)), plain.latents)


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("cloud_type", TYPES)
@pytest.mark.parametrize("edge_type", TYPES)
def test_models_that_say_the_same_in_other_terms_agree(name, cloud_type, edge_type):
    ours = stepper(name, prediction_type=cloud_type)
    lead = lead_of(ours, gaussian(ours, target=edge_type), prediction_type=edge_type)
    noise = draw_noise(SHAPE, 3) * ours.schedule.init_noise_sigma
    at = Trajectory(noise, ours)
    for result in denoise(at, asks(gaussian(ours)), lambda step: True, stop_step=6):
        assert max(lead.shadow(result.step_index, result.noise_pred, result.latents_before)) < 1e-4
    expected = all_cloud(name, prediction_type=cloud_type)
    torch.testing.assert_close(finish(lead, at, gaussian(ours)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc"])
def test_a_solver_keeps_its_history_where_it_travelled(name):
    first, second = stepper(name), stepper(name)
    state = cloud_leads(first, gaussian(first), None, 5).state()
    second.load_state(state.scheduler_state, step_index=5)
    lead = lead_of(second, gaussian(second))
    resumed = Trajectory(state.latents, second, start_step=5)
    assert torch.equal(finish(lead, resumed, gaussian(second)), all_cloud(name))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_shadowing_leaves_the_cloud_alone(name):
    ours = stepper(name)
    lead = lead_of(ours, gaussian(ours, 2.0), residual="linear", compares=True)
    assert torch.equal(cloud_leads(ours, gaussian(ours), lead, STEPS).latents, all_cloud(name))


def test_the_disagreement_is_a_ratio_of_means_for_each_picture():
    ours = stepper()
    cloud = torch.stack([torch.full(SHAPE[1:], 2.0), torch.full(SHAPE[1:], -4.0)])
    edge = torch.stack([torch.full(SHAPE[1:], 3.0), torch.full(SHAPE[1:], -4.0)])
    lead = lead_of(ours, lambda model_input, timestep: edge)
    assert lead.shadow(0, cloud, draw(0)) == pytest.approx([0.5, 0.0])


# ------------------------------------------------------------------------------ the residual


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("residual", "degree"), [("reuse", 0), ("linear", 0), ("linear", 1), ("quadratic", 2)])
def test_a_residual_that_is_a_polynomial_in_time_is_put_back_exactly(name, residual, degree):
    ours = stepper(name)
    coefficients = [draw(power) for power in range(degree + 1)]
    edge = less(gaussian(ours), lambda t: sum(c * (t / 1000) ** power for power, c in enumerate(coefficients)))
    lead = lead_of(ours, edge, residual=residual)
    at = cloud_leads(ours, gaussian(ours), lead, 5)
    torch.testing.assert_close(finish(lead, at, gaussian(ours)), all_cloud(name), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(SCHEDULERS),
    handoff_step=st.integers(2, STEPS),
    corrections=st.sets(st.integers(0, STEPS - 1)),
    seed=st.integers(0, 2**32),
)
def test_corrections_at_any_steps_keep_a_linear_residual_exact(name, handoff_step, corrections, seed):
    ours, constant, slope = stepper(name), draw(seed), draw(seed + 1)
    edge = less(gaussian(ours), lambda t: constant + slope * (t / 1000))
    lead = lead_of(ours, edge, residual="linear")
    at = cloud_leads(ours, gaussian(ours), lead, handoff_step)
    torch.testing.assert_close(finish(lead, at, gaussian(ours), corrections), all_cloud(name), rtol=1e-3, atol=1e-3)


def test_the_residual_is_of_the_type_that_the_scheduler_consumes():
    # v = alpha * epsilon - sigma * x0: what is constant in v is not in epsilon, and the edge speaks epsilon.
    ours = stepper(prediction_type="v_prediction")
    missing = draw(0)

    def edge(model_input: Tensor, timestep: float) -> Tensor:
        i = ours.schedule.timesteps.index(timestep)
        alpha, sigma = ours.schedule.alphas[i], ours.schedule.sigmas[i]
        v = gaussian(ours)(model_input, timestep) - missing
        return convert_prediction(v, model_input, source="v_prediction", target="epsilon", alpha=alpha, sigma=sigma)

    lead = lead_of(ours, edge, prediction_type="epsilon", residual="reuse")
    at = cloud_leads(ours, gaussian(ours), lead, 4)
    expected = all_cloud(prediction_type="v_prediction")
    torch.testing.assert_close(finish(lead, at, gaussian(ours)), expected, rtol=1e-4, atol=1e-4)


def test_a_faded_residual_lies_between_the_edge_alone_and_the_whole_of_it():
    errors = []
    for fade in ([0.0] * STEPS, [0.5] * STEPS, [1.0] * STEPS):
        ours, missing = stepper(), draw(0)
        lead = lead_of(ours, less(gaussian(ours), lambda t, r=missing: r), residual="reuse", fade=fade)
        at = cloud_leads(ours, gaussian(ours), lead, 5)
        errors.append(float((finish(lead, at, gaussian(ours)) - all_cloud()).norm()))
    assert errors[0] == pytest.approx(2 * errors[1], rel=1e-3)
    assert errors[2] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("length", [1, STEPS - 1, STEPS + 1])
def test_a_fade_that_is_not_one_number_a_step_is_refused(length):
    ours = stepper()
    with pytest.raises(ValueError, match=rf"one number a step, {STEPS}, not {length}"):
        lead_of(ours, gaussian(ours), residual="reuse", fade=[1.0] * length)


# ------------------------------------------------------------------------------ corrections


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("residual", [None, "linear"])
def test_with_the_cloud_asked_at_every_step_the_tail_is_the_clouds(name, residual):
    ours = stepper(name)
    lead = lead_of(ours, gaussian(ours, 3.0), residual=residual, compares=True)
    at = cloud_leads(ours, gaussian(ours), lead, 4)
    assert torch.equal(finish(lead, at, gaussian(ours), set(range(STEPS))), all_cloud(name))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_correction_is_the_clouds_step(name):
    ours, theirs = stepper(name), stepper(name)
    lead = lead_of(ours, gaussian(ours, 3.0), residual="linear", fade=[0.5] * STEPS)
    at = cloud_leads(ours, gaussian(ours), lead, 6)
    same = cloud_leads(theirs, gaussian(theirs), None, 6)
    lead.take_over(at)
    corrected = lead.advance(asks(gaussian(ours))(at))
    expected = same.advance(asks(gaussian(theirs))(same))
    assert corrected.step_index == expected.step_index == 6
    assert torch.equal(corrected.noise_pred, expected.noise_pred)
    assert torch.equal(corrected.latents, expected.latents)


def test_an_answer_that_never_came_costs_the_correction_only():
    ours, theirs = stepper(), stepper()
    lead, alone = lead_of(ours, gaussian(ours, 3.0)), lead_of(theirs, gaussian(theirs, 3.0))
    at, same = (cloud_leads(each, gaussian(each), None, 6) for each in (ours, theirs))
    lead.take_over(at)
    while lead.run_to_call(lambda step, disagreement: step == 8, lambda result: None):
        lead.think()
        lead.advance(None)
    assert torch.equal(at.latents, finish(alone, same, gaussian(theirs)))


@pytest.mark.parametrize(("residual", "calls"), [(None, STEPS - 4 - 2), ("linear", STEPS - 4)])
def test_no_step_evaluates_the_small_model_twice_nor_for_nothing(residual, calls):
    ours, asked = stepper(), []

    def edge(model_input: Tensor, timestep: float) -> Tensor:
        asked.append(timestep)
        return gaussian(ours, 0.6)(model_input, timestep)

    def wants_call(step: int, disagreement: Callable[[], float]) -> bool:
        if step not in (6, 9):
            disagreement()
        return step in (6, 9)

    lead = lead_of(ours, edge, residual=residual, compares=True)
    at = cloud_leads(ours, gaussian(ours), lead, 4)
    asked.clear()
    lead.take_over(at)
    while lead.run_to_call(wants_call, lambda result: None):
        lead.advance(asks(gaussian(ours))(at))
    assert len(asked) == len(set(asked)) == calls


def test_every_step_is_told_once_and_in_order():
    ours, told = stepper(), []
    lead = lead_of(ours, gaussian(ours), residual="linear")

    def note(result: StepResult) -> None:
        told.append(result.step_index)

    lead.take_over(cloud_leads(ours, gaussian(ours), lead, 3))
    while lead.run_to_call(lambda step, disagreement: step in (3, 7, 8, STEPS - 1), note):
        note(lead.advance(draw(0)))
    assert told == list(range(3, STEPS))


# ------------------------------------------------------------------------------ disagreement after the handoff


def measured(lead: EdgeLead, at: Trajectory) -> float:
    """Return the disagreement at the trajectory's next step."""
    found = []
    lead.take_over(at)
    lead.run_to_call(lambda step, disagreement: not found.append(disagreement()), lambda result: None)
    return found[0]


@pytest.mark.parametrize(("shadowed", "finite"), [(0, False), (1, False), (2, True), (3, True)])
def test_there_is_a_disagreement_once_two_cloud_predictions_were_seen(shadowed, finite):
    ours = stepper()
    lead = lead_of(ours, gaussian(ours, 0.6), compares=True)
    at = cloud_leads(ours, gaussian(ours), lead, shadowed)
    assert math.isfinite(measured(lead, at)) is finite


def test_the_disagreement_is_that_of_the_corrected_edge_with_the_extrapolated_cloud():
    ours, slope = stepper(), draw(0)

    def cloud(model_input: Tensor, timestep: float) -> Tensor:
        return slope * (timestep / 1000)  # which a parabola extrapolates exactly

    missing = [torch.zeros(SHAPE), 0.25 * slope]
    found = []
    for residual, gap in ((None, missing[1]), ("reuse", missing[1]), (None, missing[0])):
        lead = lead_of(ours, less(cloud, lambda t, gap=gap: gap * (t / 1000)), residual=residual, compares=True)
        found.append(measured(lead, cloud_leads(ours, cloud, lead, 5)))
    assert found[0] == pytest.approx(0.25, rel=1e-3)
    assert 0.0 < found[1] < 0.1  # what the residual has put back is no disagreement any more
    assert found[2] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("picture", [0, 1])
def test_one_picture_without_a_number_leaves_the_disagreement_without_one(picture):
    ours = stepper()

    def edge(model_input: Tensor, timestep: float) -> Tensor:
        answer = gaussian(ours, 0.6)(model_input, timestep)
        answer[picture] = math.nan
        return answer

    lead = lead_of(ours, edge, compares=True)
    assert math.isnan(measured(lead, cloud_leads(ours, gaussian(ours), lead, 5)))


# ------------------------------------------------------------------------------ answers that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("bad_step", [0, 2, 4])
def test_a_shadow_without_a_finite_answer_teaches_nothing(bad, bad_step):
    ours, constant, slope = stepper(), draw(0), draw(1)
    good = less(gaussian(ours), lambda t: constant + slope * (t / 1000))

    def edge(model_input: Tensor, timestep: float) -> Tensor:
        answer = good(model_input, timestep)
        if timestep == ours.schedule.timesteps[bad_step]:
            answer[1, 0, 0, 0] = bad
        return answer

    lead = lead_of(ours, edge, residual="linear", compares=True)
    at = Trajectory(draw_noise(SHAPE, 3), ours)
    for result in denoise(at, asks(gaussian(ours)), lambda step: True, stop_step=5):
        disagreement = lead.shadow(result.step_index, result.noise_pred, result.latents_before)
        assert [math.isfinite(q) for q in disagreement] == [True, result.step_index != bad_step]
    torch.testing.assert_close(finish(lead, at, gaussian(ours)), all_cloud(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_an_edge_that_leads_without_a_finite_answer_stops(bad):
    ours = stepper()
    edge = less(gaussian(ours), lambda t: torch.tensor(bad if t == ours.schedule.timesteps[7] else 0.0))
    lead = lead_of(ours, edge)
    at = cloud_leads(ours, gaussian(ours), None, 5)
    lead.take_over(at)
    with pytest.raises(ArithmeticError, match="no finite answer at step 7"):
        lead.run_to_call(lambda step, disagreement: False, lambda result: None)
    assert at.step_index == 7
    assert torch.isfinite(at.latents).all()


@pytest.mark.parametrize("residual", [None, "linear"])
def test_the_cloud_saves_a_step_that_the_edge_has_no_answer_for(residual):
    ours = stepper()
    edge = less(gaussian(ours), lambda t: torch.tensor(math.nan if t == ours.schedule.timesteps[7] else 0.0))
    lead = lead_of(ours, edge, residual=residual)
    at = cloud_leads(ours, gaussian(ours), lead, 5)
    assert torch.equal(finish(lead, at, gaussian(ours), {7}), all_cloud())


def test_epsilon_at_zero_signal_says_nothing_and_costs_nothing():
    ours = stepper(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=0
    )
    assert ours.schedule.alphas[0] == 0.0

    def edge(model_input: Tensor, timestep: float) -> Tensor:
        if timestep == ours.schedule.timesteps[0]:
            return model_input.float()
        return gaussian(ours, target="epsilon")(model_input, timestep)

    lead = lead_of(ours, edge, prediction_type="epsilon", residual="linear")
    at = Trajectory(draw_noise(SHAPE, 3), ours)
    for result in denoise(at, asks(gaussian(ours)), lambda step: True, stop_step=6):
        disagreement = lead.shadow(result.step_index, result.noise_pred, result.latents_before)
        assert [math.isnan(q) for q in disagreement] == [result.step_index == 0] * 2
    assert torch.isfinite(finish(lead, at, gaussian(ours))).all()


# ------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pictures_of_a_batch_do_not_know_of_each_other(name):
    def run(rows: slice) -> tuple[Tensor, list[list[float]]]:
        ours, missing = stepper(name), draw(5)[rows]
        lead = lead_of(ours, less(gaussian(ours, 0.7), lambda t: missing * t / 1000), residual="quadratic")
        at = Trajectory((draw_noise(SHAPE, 3) * ours.schedule.init_noise_sigma)[rows], ours)
        measured = [
            lead.shadow(result.step_index, result.noise_pred, result.latents_before)
            for result in denoise(at, asks(gaussian(ours)), lambda step: True, stop_step=5)
        ]
        return finish(lead, at, gaussian(ours), {8}), measured

    together, q_together = run(slice(None))
    alone, q_alone = zip(*(run(slice(row, row + 1)) for row in range(SHAPE[0])), strict=True)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)
    for step, values in enumerate(q_together):
        assert values == pytest.approx([each[step][0] for each in q_alone], rel=1e-5)
