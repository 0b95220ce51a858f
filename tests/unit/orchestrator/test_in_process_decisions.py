"""What is decided while both models run in one process: corrections, and the handoff by agreement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gaussian_pair import EDGE, PROMPTS, SCHEDULERS, STEPS, Gaussian, a_pair, spaced, split

from wire.edge_plan import Agreement, EdgePlan
from wire.messages import Source

# ------------------------------------------------------------------------------ corrections


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("shadow", [True, False])
def test_tolerance_zero_corrects_every_step_and_is_all_cloud(scheduler, shadow):
    pair = a_pair(scheduler=scheduler)
    edge_plan = EdgePlan(shadow=shadow, residual="linear", corrections="disagreement", tolerance=0.0)
    outcome = pair.generate(split(5), edge_plan)
    assert outcome.corrections == list(range(5, STEPS))
    assert torch.equal(outcome.latents, pair.generate(split()).latents)


@pytest.mark.parametrize(
    ("shadow", "budget", "corrections"), [(True, None, []), (False, None, [5, 6]), (False, 6, [5])]
)
def test_huge_tolerance_asks_only_until_there_is_something_to_compare_with(shadow, budget, corrections):
    edge_plan = EdgePlan(shadow=shadow, corrections="disagreement", tolerance=1e9, max_cloud_calls=budget)
    assert a_pair().generate(split(5), edge_plan).corrections == corrections


@pytest.mark.parametrize("budget", [0, 3, 5, 6, 9, STEPS])
@pytest.mark.parametrize("corrections", ["none", "final", "planned", "disagreement"])
def test_the_budget_counts_real_steps_and_corrections_together(budget, corrections):
    edge_plan = EdgePlan(shadow=True, corrections=corrections, correction_steps=(6, 8, 10, 12), max_cloud_calls=budget)
    outcome = a_pair().generate(split(5), edge_plan)
    assert outcome.cloud_calls <= max(budget, 5)  # the real steps themselves are the cloud's business
    wanted = {"none": 0, "final": 1, "planned": 4, "disagreement": STEPS - 5}[corrections]
    assert len(outcome.corrections) == min(wanted, max(budget - 5, 0))


def test_a_tolerance_means_the_same_under_eulers_scaling():
    # Euler's trajectory is DDIM's in other units.
    edge_plan = EdgePlan(shadow=True, corrections="disagreement", tolerance=0.05)
    asked = [a_pair(scheduler=name).generate(split(3), edge_plan).corrections for name in ("ddim", "euler")]
    assert asked[0] == asked[1]
    assert 0 < len(asked[0]) < STEPS - 3


# ------------------------------------------------------------------------------ handoff by agreement


def searched(tolerance: float, tail_error: Callable[[int], float] = lambda step: 1 - step / STEPS) -> EdgePlan:
    """Return the plan that a search on the first prompt would give, with an allowed error."""
    measured = a_pair(prompts=PROMPTS[:1]).generate(split(), EdgePlan(shadow=True)).disagreement
    curve = tuple(measured[step][0] for step in range(STEPS))
    agreement = Agreement(
        disagreement=curve, tail_error=tuple(tail_error(i) for i in range(STEPS + 1)), tolerance=tolerance
    )
    return EdgePlan(shadow=True, agreement=agreement)


def test_prompts_hand_off_by_what_is_measured_for_them():
    easy, hard = Gaussian(deviation=0.52, offset=0.02), Gaussian(deviation=0.8, offset=0.2)
    handoffs, scales = [], []
    for edge in (easy, EDGE, hard):
        outcome = a_pair(edge, PROMPTS[:1]).generate(split(12), searched(0.5))
        handoffs.append(outcome.handoff_step)
        scales.append(outcome.scale)
        assert outcome.sources.count(Source.CLOUD) == outcome.handoff_step
    assert scales[1] == pytest.approx(1.0, rel=1e-5)
    assert scales[0] < 0.5 < 1.5 < scales[2]
    assert handoffs == [2, 9, 12]  # a tail error of 1 - i/16, times the scale, below 0.5; or the bound


def test_tolerance_zero_hands_off_at_the_plans_step():
    assert a_pair(Gaussian()).generate(split(11), searched(0.0)).handoff_step == 11


def test_a_tail_error_that_is_infinite_up_to_the_bound_hands_off_there():
    assert a_pair(Gaussian()).generate(split(11), searched(9.0, lambda step: math.inf)).handoff_step == 11


def test_the_edge_takes_over_after_a_step_that_it_shadowed():
    outcome = a_pair(prompts=PROMPTS[:1]).generate(spaced(14), searched(0.5))
    assert outcome.handoff_step == 9  # step 8 is real, and so is 11; between them the expected error gets small enough
    assert outcome.sources[outcome.handoff_step - 1] is Source.CLOUD
    later = a_pair(prompts=PROMPTS[:1]).generate(spaced(14), searched(0.42))
    assert later.handoff_step == 12


# ------------------------------------------------------------------------------ numbers that are none


def test_an_edge_that_fails_beside_the_cloud_hands_off_at_the_bound_and_is_saved_by_corrections():
    pair = a_pair(replace(EDGE, bad_below=2000.0))  # at every step
    edge_plan = replace(searched(9.0), residual="linear", corrections="disagreement", tolerance=1e9)
    outcome = pair.generate(split(11), edge_plan)
    assert outcome.handoff_step == 11
    assert outcome.scale is None
    assert outcome.corrections == [11, 12, 13, 14, 15]
    assert torch.equal(outcome.latents, pair.generate(split()).latents)


@pytest.mark.parametrize("residual", [None, "linear"])
def test_an_edge_that_fails_where_it_leads_ends_the_generation(residual):
    timestep = a_pair().stepper(STEPS).schedule.timesteps[12]
    pair = a_pair(replace(EDGE, bad_below=timestep + 1))
    with pytest.raises(ArithmeticError, match="no finite answer at step 12"):
        pair.generate(split(8), EdgePlan(shadow=True, residual=residual))
