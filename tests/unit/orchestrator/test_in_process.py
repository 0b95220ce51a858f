"""Both models in one process, on a pair that is known in closed form: every prompt's pictures are normal."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from gaussian_pair import CLOUD, EDGE, PROMPTS, SCHEDULERS, STEPS, Gaussian, a_pair, error, spaced, split

from diffusion.noise import draw_noise
from diffusion.predictors import make_predictor
from diffusion.trajectory import StepResult, Trajectory, denoise
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.refresh import make_refresh
from wire.edge_plan import EdgePlan
from wire.messages import Plan, Source

# ------------------------------------------------------------------------------ what must not change


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    "edge_plan",
    [
        EdgePlan(),
        EdgePlan(shadow=True),
        EdgePlan(shadow=True, residual="quadratic", fade=(0.5,) * STEPS),
        EdgePlan(corrections="planned", correction_steps=(2, 9, 12)),
        EdgePlan(shadow=True, residual="linear", corrections="disagreement", tolerance=0.01),
    ],
)
def test_an_edge_that_equals_the_cloud_changes_not_one_bit(scheduler, edge_plan):
    pair = a_pair(Gaussian(), scheduler=scheduler)
    expected = pair.generate(split()).latents
    for handoff_step in (0, 6, STEPS):
        assert torch.equal(pair.generate(split(handoff_step), edge_plan).latents, expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("mode", ["split", "ecdiff"])
def test_a_plan_alone_is_the_plain_mode(scheduler, mode):
    pair = a_pair(replace(EDGE, target="v_prediction"), scheduler=scheduler)
    plan = make_plan(mode, PlanOptions(num_inference_steps=50))
    stepper, refresh = pair.stepper(50), make_refresh(plan)
    predictor = make_predictor(plan.predictor, stepper.schedule, prediction_type="epsilon", smoothing=plan.smoothing)
    noise = torch.cat([draw_noise((1, 2, 4, 4), seed) for seed in range(len(PROMPTS))])
    at = Trajectory(noise * stepper.schedule.init_noise_sigma, stepper, predictor=predictor)
    list(
        denoise(
            at,
            lambda now: pair.ask(CLOUD, now.model_input(), now.timestep),
            lambda step: refresh.decide(step) is Source.CLOUD,
            stop_step=plan.handoff_step,
        )
    )
    list(
        denoise(
            at,
            lambda now: pair.ask(pair.edge, now.model_input(), now.timestep),
            lambda step: True,
            stop_step=50,
            prediction_type="v_prediction",
        )
    )
    outcome = pair.generate(plan)
    assert torch.equal(outcome.latents, at.latents)
    assert (outcome.handoff_step, outcome.corrections, outcome.disagreement) == (plan.handoff_step, [], {})


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_shadow_alone_changes_nothing(scheduler):
    pair = a_pair(scheduler=scheduler)
    assert torch.equal(
        pair.generate(spaced(12), EdgePlan(shadow=True)).latents, pair.generate(spaced(12), EdgePlan()).latents
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_prompts_of_one_batch_come_out_as_they_do_one_by_one(scheduler):
    edge_plan = EdgePlan(shadow=True, residual="linear", corrections="planned", correction_steps=(10, 13))
    together = a_pair(scheduler=scheduler).generate(spaced(9), edge_plan)
    alone = [a_pair(prompts=[prompt], scheduler=scheduler).generate(spaced(9), edge_plan) for prompt in PROMPTS]
    torch.testing.assert_close(together.latents, torch.cat([each.latents for each in alone]), rtol=1e-5, atol=1e-5)
    for step, measured in together.disagreement.items():
        assert measured == pytest.approx([each.disagreement[step][0] for each in alone], rel=1e-4)


def test_one_generation_knows_nothing_of_the_last():
    pair = a_pair()
    edge_plan = EdgePlan(shadow=True, residual="quadratic", corrections="disagreement", tolerance=0.02)
    first = pair.generate(spaced(9), edge_plan)
    pair.generate(split(3), edge_plan)
    assert torch.equal(pair.generate(spaced(9), edge_plan).latents, first.latents)


def test_an_edge_of_another_prediction_type_is_as_good():
    plan, edge_plan = spaced(9), EdgePlan(shadow=True, residual="linear", corrections="final")
    for cloud_type in ("epsilon", "v_prediction"):
        cloud = replace(CLOUD, target=cloud_type)
        results = [
            a_pair(replace(EDGE, target=target), cloud=cloud).generate(plan, edge_plan).latents
            for target in ("epsilon", "v_prediction", "sample")
        ]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------ what it is good for


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_residual_brings_the_edge_nearer_to_the_cloud_and_corrections_nearer_still(scheduler):
    pair = a_pair(scheduler=scheduler)
    plain = error(pair, split(8))
    corrected_edge = error(pair, split(8), EdgePlan(shadow=True, residual="linear"))
    asked_again = error(
        pair,
        split(8),
        EdgePlan(shadow=True, residual="linear", corrections="planned", correction_steps=(10, 12, 14)),
    )
    assert asked_again < corrected_edge < 0.5 * plain


# ------------------------------------------------------------------------------ what the outcome says


def test_the_outcome_tells_who_made_each_step():
    told: list[StepResult] = []
    outcome = a_pair().generate(
        spaced(9),
        EdgePlan(shadow=True, corrections="planned", correction_steps=(4, 9, 13)),
        on_step=told.append,
    )
    assert "".join(source.letter for source in outcome.sources) == "CCxCxCxxC" + "e" * 7
    assert [result.step_index for result in told] == list(range(STEPS))
    assert (outcome.handoff_step, outcome.corrections, outcome.cloud_calls) == (9, [9, 13], 7)
    assert list(outcome.disagreement) == [0, 1, 3, 5, 8]
    assert all(len(measured) == len(PROMPTS) for measured in outcome.disagreement.values())
    assert torch.equal(told[-1].latents, outcome.latents)


def test_without_a_handoff_the_cloud_makes_every_step():
    outcome = a_pair().generate(split(), EdgePlan(shadow=True, residual="linear", corrections="final"))
    assert (outcome.handoff_step, outcome.corrections, outcome.cloud_calls) == (STEPS, [], STEPS)


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("scheduler", ["ddim", "unipc"])
def test_no_trajectory_is_kept(scheduler):
    steps, alive, seen = 60, [], []

    def note(result: StepResult) -> None:
        seen.extend([weakref.ref(result.latents), weakref.ref(result.noise_pred)])
        alive.append(sum(ref() is not None for ref in seen))

    edge_plan = EdgePlan(shadow=True, residual="quadratic", corrections="disagreement", tolerance=0.02)
    plan = Plan(
        num_inference_steps=steps,
        handoff_step=40,
        refresh="third-difference",
        tolerance=0.01,
        skip_interval=3,
        predictor="quadratic",
    )
    outcome = a_pair(scheduler=scheduler).generate(plan, edge_plan, on_step=note)
    assert 0 < len(outcome.corrections) < 20
    assert max(alive[40:]) <= max(alive[:40]) + 2 < 20 < len(seen)
