"""The edge's half of a generation, on models whose answers are known in closed form: data that is normal."""

from __future__ import annotations

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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.trajectory import Trajectory, denoise

TYPES = ["epsilon", "v_prediction", "sample"]


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
