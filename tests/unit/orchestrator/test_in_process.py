"""Both models in one process, on a pair that is known in closed form: every prompt's pictures are normal."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.model import Conditioning, Evaluation, ModelInfo
from diffusion.noise import draw_noise
from diffusion.prediction_types import convert_prediction
from diffusion.predictors import make_predictor
from diffusion.trajectory import StepResult, Trajectory, denoise
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.refresh import make_refresh
from wire.edge_plan import Agreement, EdgePlan
from wire.messages import Plan, Source

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": True,
}
ALPHAS_BAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SCHEDULERS = ["ddim", "dpmpp-2m", "unipc", "euler"]
PROMPTS = ["0.2", "-1.5", "3.0"]
STEPS = 16


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A `Model` whose pictures for the prompt "m" are normal around m: E[x0 | x] is the prediction.

    Attributes:
        deviation: Of the pictures.
        offset: Added to every prompt's m.
        target: Prediction type.
        bad_below: Timestep from which on, downwards, it answers with NaN.
    """

    deviation: float = 0.5
    offset: float = 0.0
    target: str = "epsilon"
    bad_below: float = -1.0
    device = torch.device("cpu")
    dtype = torch.float32

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="gaussian",
            fingerprint="",
            family="sd",
            prediction_type=self.target,
            latent_channels=2,
            layout="BCHW",
            vae_scale_factor=8,
            vae_scaling_factor=1.0,
            vae_shift_factor=0.0,
            vae_fingerprint="",
            text_encoder_fingerprint="",
            scheduler_class="DDIMScheduler",
            scheduler_config=json.dumps(CONFIG | {"prediction_type": self.target}),
            default_height=32,
            default_width=32,
            num_parameters=0,
            dtype="float32",
            device="cpu",
        )

    def encode_prompt(self, prompt: str, negative_prompt: str = "", *, guided: bool) -> Conditioning:
        return Conditioning(prompt_embeds=torch.full((1, 1, 1), float(prompt) + self.offset))

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        return [self._evaluate(each) for each in evaluations]

    def _evaluate(self, asked: Evaluation) -> Tensor:
        abar = float(ALPHAS_BAR[round(asked.timestep)])
        alpha, sigma, variance = abar**0.5, (1 - abar) ** 0.5, self.deviation**2
        mean, x = asked.conditioning.prompt_embeds[..., None], asked.latents
        denoised = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        answer = convert_prediction(denoised, x, source="sample", target=self.target, alpha=alpha, sigma=sigma)
        return answer * math.nan if asked.timestep < self.bad_below else answer

    def decode(self, latents: Tensor) -> NDArray[Any]:
        raise NotImplementedError("these tests look at latents")

    def latents_shape(self, height: int, width: int, num_images: int) -> tuple[int, int, int, int]:
        return (num_images, 2, 4, 4)


CLOUD = Gaussian()
EDGE = Gaussian(deviation=0.6, offset=0.1)


def a_pair(edge: Gaussian = EDGE, prompts: Sequence[str] = PROMPTS, scheduler: str = "ddim", **changes: Any):
    seeds = [PROMPTS.index(prompt) for prompt in prompts]
    cloud = changes.get("cloud", CLOUD)
    return InProcessPair(cloud, edge, prompts, seeds, guidance_scale=1.0, scheduler=scheduler)


def split(handoff_step: int = STEPS, **changes: Any) -> Plan:
    return Plan(num_inference_steps=STEPS, handoff_step=handoff_step, **changes)


def spaced(handoff_step: int, real_steps: Sequence[int] = (0, 1, 3, 5, 8, 11)) -> Plan:
    return split(handoff_step, refresh="listed", real_steps=tuple(real_steps), predictor="linear")


def error(pair: InProcessPair, plan: Plan, edge_plan: EdgePlan | None = None) -> float:
    reference = pair.generate(split()).latents
    return float((pair.generate(plan, edge_plan).latents - reference).norm() / reference.norm())


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
