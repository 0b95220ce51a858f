"""Refresh policies that decide before the start."""

from __future__ import annotations

from orchestrator.refresh import make_refresh
from wire.messages import Plan, Source


def test_fixed_refresh_is_the_papers_rule() -> None:
    plan = Plan(num_inference_steps=60, handoff_step=60, refresh="fixed", warmup_steps=6, skip_interval=5)
    policy = make_refresh(plan)
    real = [i for i in range(60) if policy.decide(i) is Source.CLOUD]
    assert real == [i for i in range(60) if i < 6 or (i + 1 - 6) % 6 == 0]


def test_a_resumed_trajectory_warms_up_again() -> None:
    plan = Plan(num_inference_steps=50, handoff_step=50, refresh="fixed", warmup_steps=3, skip_interval=2)
    policy = make_refresh(plan, start_step=20)
    assert "".join(policy.decide(i).letter for i in range(20, 32)) == "CCCxxCxxCxxC"


def test_always_refresh_evaluates_every_step() -> None:
    policy = make_refresh(Plan(num_inference_steps=5, handoff_step=5))
    assert all(policy.decide(i) is Source.CLOUD for i in range(5))
