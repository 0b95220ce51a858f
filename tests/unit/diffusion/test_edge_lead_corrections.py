"""An edge that leads: where it asks the cloud, what it measures for that, and answers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from edge_lead_toys import (
    SCHEDULERS,
    SHAPE,
    STEPS,
    all_cloud,
    asks,
    cloud_leads,
    draw,
    finish,
    gaussian,
    lead_of,
    less,
    stepper,
)
from torch import Tensor

from diffusion.edge_lead import EdgeLead
from diffusion.noise import draw_noise
from diffusion.trajectory import StepResult, Trajectory, denoise

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
