"""A plan replayed on what was recorded, against the same plan closed loop, on models that are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from edge_lead_toys import SCHEDULERS, SHAPE, STEPS, gaussian, less, stepper
from torch import Tensor

from diffusion.edge_lead import make_edge_lead
from diffusion.noise import draw_noise
from diffusion.predictors import make_predictor
from diffusion.replay import Recording, Replay, Responses, response
from diffusion.schedulers import Stepper
from diffusion.trajectory import Trajectory, denoise

Ask = Callable[[Tensor, float], Tensor]
PLANS = [
    {"real_steps": (0, 1, 4, 7, 10), "handoff_step": STEPS, "correction_steps": (), "residual": None},
    {"real_steps": (0, 1, 3), "handoff_step": 4, "correction_steps": (6, 9), "residual": "linear"},
    {"real_steps": (0, 1), "handoff_step": 2, "correction_steps": (), "residual": "reuse"},
    {"real_steps": (0, 1, 2, 3), "handoff_step": 4, "correction_steps": (8,), "residual": None},
]


def models(ours: Stepper) -> tuple[Ask, Ask]:
    """Return a cloud and an edge, both linear in the latents; the edge leaves out something that depends on time."""
    pattern = 0.2 * draw_noise(SHAPE, 9)
    curved = less(gaussian(ours), lambda timestep: pattern * (timestep / 1000) ** 3)
    return curved, less(gaussian(ours, deviation=0.6), lambda timestep: 0.3 + pattern * (timestep / 1000))


def start(ours: Stepper) -> Tensor:
    return draw_noise(SHAPE, 3) * ours.schedule.init_noise_sigma


def recorded(ours: Stepper) -> Recording:
    cloud, edge = models(ours)
    steps = list(
        denoise(
            Trajectory(start(ours), ours),
            lambda at: cloud(at.model_input(), at.timestep),
            lambda i: True,
            stop_step=STEPS,
        )
    )
    asked = [
        edge(ours.scale_model_input(each.latents_before, i), ours.schedule.timesteps[i]) for i, each in enumerate(steps)
    ]
    return Recording(
        latents=(*(each.latents_before for each in steps), steps[-1].latents),
        cloud=tuple(each.noise_pred for each in steps),
        edge=tuple(asked),
    )


def measured(ours: Stepper, recording: Recording) -> Responses:
    """Return both models' responses at latents moved a little."""
    found = []
    for model, there in zip(models(ours), (recording.cloud, recording.edge), strict=True):
        curve = []
        for i in range(STEPS):
            distance = 0.1 * draw_noise(SHAPE, 100 + i)
            moved = ours.scale_model_input(recording.latents[i] + distance, i)
            curve.append(response([(distance, model(moved, ours.schedule.timesteps[i]) - there[i])]))
        found.append(tuple(curve))
    return Responses(cloud=found[0], edge=found[1])


def closed_loop(ours: Stepper, plan: dict, predictor: str, fade: tuple[float, ...]) -> Tensor:
    """Run a plan on the models themselves; return the final latents."""
    cloud, edge = models(ours)
    rule = make_predictor(predictor, ours.schedule, prediction_type=ours.prediction_type)
    trajectory = Trajectory(start(ours), ours, predictor=rule)
    lead = make_edge_lead(edge, ours, prediction_type=ours.prediction_type, residual=plan["residual"], fade=fade)
    for result in denoise(
        trajectory,
        lambda at: cloud(at.model_input(), at.timestep),
        lambda i: i in plan["real_steps"],
        stop_step=plan["handoff_step"],
    ):
        if result.evaluated:
            lead.shadow(result.step_index, result.noise_pred, result.latents_before)
    lead.take_over(trajectory)
    while lead.run_to_call(lambda i, measure: i in plan["correction_steps"], lambda result: None):
        lead.advance(cloud(trajectory.model_input(), trajectory.timestep))
    return trajectory.latents


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("predictor", ["linear", "quadratic", "x0-linear", "chebyshev"])
def test_a_replay_is_the_closed_loop_where_the_models_are_linear(name: str, plan: dict, predictor: str) -> None:
    recording = recorded(stepper(name))
    replay = Replay(recording, measured(stepper(name), recording), stepper(name))
    guessed, fade = replay.run(**plan, predictor=predictor)
    again, same_fade = replay.run(**plan, predictor=predictor, fade=fade)
    assert again == guessed
    assert same_fade == fade
    final = recording.latents[-1].flatten(1)
    difference = closed_loop(stepper(name), plan, predictor, fade).flatten(1) - final
    true = (difference.norm(dim=1) / final.norm(dim=1)).tolist()
    assert guessed == pytest.approx(true, rel=2e-3, abs=2e-5)


def test_without_an_edge_that_differs_nothing_is_off() -> None:
    ours = stepper()
    recording = recorded(ours)
    same = Recording(latents=recording.latents, cloud=recording.cloud, edge=recording.cloud)
    nothing = Responses(cloud=(0.0,) * STEPS, edge=(0.0,) * STEPS)
    plan = {"real_steps": (0, 1), "handoff_step": 2, "correction_steps": (), "predictor": "linear", "residual": None}
    errors, fade = Replay(same, nothing, stepper()).run(**plan)
    assert max(errors) < 1e-6
    assert fade == ()


def test_the_best_fade_is_within_0_and_1_and_helps() -> None:
    recording = recorded(stepper())
    replay = Replay(recording, measured(stepper(), recording), stepper())
    plan = PLANS[1] | {"predictor": "linear"}
    best, fade = replay.run(**plan)
    whole, _ = replay.run(**plan, fade=(1.0,) * STEPS)
    none, _ = replay.run(**plan, fade=(0.0,) * STEPS)
    assert all(0.0 <= each <= 1.0 for each in fade)
    assert sum(best) <= 1.001 * min(sum(whole), sum(none))


def test_the_response_is_the_slope() -> None:
    distance = torch.randn(2, 3)
    assert response([(distance, 1.5 * distance), (-distance, -1.5 * distance)]) == pytest.approx(1.5)
    assert response([(torch.zeros(2, 3), torch.zeros(2, 3))]) == 0.0
