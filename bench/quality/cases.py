"""One way to make pictures, and every one that is compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestrator.choice import choose_plan
from orchestrator.plan import PAPER_HANDOFF_STEP, PAPER_STEPS, PlanOptions, make_plan
from orchestrator.searched_plan import PlanFile, SearchedPlan
from orchestrator.searched_run import plan_and_edge_plan
from wire.edge_plan import EdgePlan
from wire.messages import Plan

GROUPS = (
    "all-cloud",
    "edge",
    "split",
    "ecdiff",
    "ecdiff-searched",
    "solvers",
    "searched",
    "on-dpmpp",
    "ablations",
)
"""What `--methods` names, in the order of the table."""

ALL_CLOUD = "all-cloud"
EDGE_ONLY = "edge only"
PUBLISHED_HYBRID = "EC-Diff published, handoff"
PUBLISHED_CLOUD = "EC-Diff published, cloud only"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to make pictures.

    Attributes:
        name: As tables show it; no two cases share one.
        group: One of `GROUPS`.
        budget: Cloud calls that it was made for; None where nobody asked for a number.
        plan: The cloud's part.
        edge_plan: The edge's part.
        scheduler: Command-line name of the update rule.
        spacing: How the scheduler places its timesteps: `timestep_spacing` of diffusers, or `log_snr.LOG_SNR`; None: as
            the pair's own configuration says.
        per_prompt: Whether each prompt is run by itself, since what is decided depends on it.
        chosen_error: What it was chosen by on the search prompts, relative L2 to all-cloud; None where nothing was
            chosen, or by the converged reference.
        chosen_converged_error: Likewise, to the converged reference.
    """

    name: str
    group: str
    plan: Plan
    budget: int | None = None
    edge_plan: EdgePlan = field(default_factory=EdgePlan)
    scheduler: str = "ddim"
    spacing: str | None = None
    per_prompt: bool = False
    chosen_error: float | None = None
    chosen_converged_error: float | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """All that what it makes depends on, besides models, prompts and guidance."""
        return {
            "plan": asdict(self.plan),
            "edge_plan": asdict(self.edge_plan),
            "scheduler": self.scheduler,
            "spacing": self.spacing,
            "per_prompt": self.per_prompt,
        }

    @property
    def rows_of_work(self) -> int:
        """About how many cloud calls it makes, an edge step counted as a seventh: for the progress bar."""
        plan = self.plan
        calls = (
            plan.handoff_step
            if plan.refresh == "always"
            else len([i for i in plan.real_steps if i < plan.handoff_step])
        )
        if plan.refresh == "fixed":
            calls = len(fixed_steps(plan.warmup_steps, plan.skip_interval, plan.handoff_step))
        edge_steps = plan.num_inference_steps - plan.handoff_step + (calls if self.edge_plan.shadow else 0)
        return 1 + calls + len(self.edge_plan.correction_steps) + edge_steps // 7


def all_cloud(num_steps: int) -> Plan:
    """Return the plan that evaluates every step in the cloud."""
    return Plan(num_inference_steps=num_steps, handoff_step=num_steps)


def fixed_steps(warmup_steps: int, skip_interval: int, handoff_step: int) -> list[int]:
    """Return EC-Diff's real steps before the handoff (arXiv 2507.11980, its public code)."""
    return [i for i in range(handoff_step) if i < warmup_steps or (i + 1 - warmup_steps) % (skip_interval + 1) == 0]


def published(num_steps: int, converged_steps: int) -> list[Case]:
    """Return the cases whose parameters nobody chose here: the references, and the rivals as published."""
    handoff_step = round(PAPER_HANDOFF_STEP * num_steps / PAPER_STEPS)

    def plan(mode: str, handoff: int | None = None) -> Plan:
        return make_plan(mode, PlanOptions(num_inference_steps=num_steps, handoff_step=handoff))

    few = len(fixed_steps(plan("ecdiff").warmup_steps, plan("ecdiff").skip_interval, handoff_step))
    splits = [
        Case(name=f"Hybrid SD split {split},{num_steps - split}", group="split", plan=plan("split", split))
        for split in (handoff_step, few)
    ]
    return [
        Case(name=ALL_CLOUD, group="all-cloud", plan=plan("cloud")),
        Case(name=f"{ALL_CLOUD}, {converged_steps} steps", group="all-cloud", plan=all_cloud(converged_steps)),
        Case(name=EDGE_ONLY, group="edge", plan=plan("edge")),
        *splits,
        Case(name=PUBLISHED_HYBRID, group="ecdiff", plan=plan("ecdiff", handoff_step)),
        Case(name=PUBLISHED_CLOUD, group="ecdiff", plan=plan("ecdiff", num_steps)),
    ]


def searched(file: PlanFile) -> list[Case]:
    """Return every plan of a file, handing off at its step for every prompt, and some by agreement.

    Those are the default plan and the cheapest and the dearest that hand off: each prompt is run by itself, which takes
    longer.
    """
    hybrid = [each for each in file.plans if each.edge_steps]
    by_agreement = [default_plan(file), *hybrid[:1], *hybrid[-1:]]
    cases = []
    for index, each in enumerate(file.plans):
        name = _title(file, each, index)
        fixed_plan, fixed_edge = _plans(file, each, handoff_step=each.handoff_step)
        cases.append(_searched_case(file, each, name, fixed_plan, fixed_edge))
        plan, edge_plan = _plans(file, each)
        if each in by_agreement and edge_plan.agreement is not None:
            agreeing = _searched_case(file, each, f"{name}, agreement", plan, edge_plan)
            cases.append(replace(agreeing, per_prompt=True))
    return cases


def ablations(file: PlanFile, tolerances: Iterable[float]) -> list[Case]:
    """Return what becomes of the file's default plan when one of its parts is left out or replaced."""
    chosen = default_plan(file)
    plan, edge_plan = _plans(file, chosen, handoff_step=chosen.handoff_step)

    def variant(what: str, edge: EdgePlan, *, per_prompt: bool = False) -> Case:
        return Case(
            name=f"default plan, {what}",
            group="ablations",
            budget=chosen.cloud_calls,
            plan=plan,
            edge_plan=edge,
            scheduler=file.scheduler,
            per_prompt=per_prompt,
        )

    uncorrected = replace(edge_plan, corrections="none", correction_steps=())
    return [
        variant("no residual", replace(edge_plan, residual=None, fade=(), shadow=False)),
        variant("no fade", replace(edge_plan, fade=())),
        variant("no shadow", replace(edge_plan, shadow=False)),
        variant("no corrections", uncorrected),
        variant("corrections final", replace(uncorrected, corrections="final")),
        *(
            variant(
                f"corrections disagreement {tolerance:g}",
                replace(uncorrected, corrections="disagreement", tolerance=tolerance),
                per_prompt=True,
            )
            for tolerance in tolerances
        ),
    ]


def default_plan(file: PlanFile) -> SearchedPlan:
    """Return the plan that a generation runs where its user bounds nothing."""
    return choose_plan(file).searched


def _plans(file: PlanFile, searched_plan: SearchedPlan, *, handoff_step: int | None = None) -> tuple[Plan, EdgePlan]:
    return plan_and_edge_plan(file, searched_plan, tolerance=searched_plan.error, handoff_step=handoff_step)


def _title(file: PlanFile, searched_plan: SearchedPlan, index: int) -> str:
    where = "cloud only" if not searched_plan.edge_steps else f"handoff {searched_plan.handoff_step}"
    twins = [i for i, each in enumerate(file.plans) if each.cloud_calls == searched_plan.cloud_calls]
    letter = "" if len(twins) == 1 else "abcdefgh"[twins.index(index)]
    return f"ours {searched_plan.cloud_calls}{letter}, {where}"


def _searched_case(file: PlanFile, searched_plan: SearchedPlan, name: str, plan: Plan, edge_plan: EdgePlan) -> Case:
    return Case(
        name=name,
        group="searched",
        budget=searched_plan.cloud_calls,
        plan=plan,
        edge_plan=edge_plan,
        scheduler=file.scheduler,
        chosen_error=searched_plan.error,
    )
