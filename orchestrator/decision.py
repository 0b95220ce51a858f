"""What is decided before a generation starts: the plan that the cloud gets, and the edge's own part of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.choice import choose_plan
from orchestrator.cost import Costs, may_ask_cloud, predict_latency
from orchestrator.plan import PlanOptions, make_edge_plan, make_plan, plan_from_start
from orchestrator.searched_plan import PlanFile
from wire.edge_plan import EdgePlan
from wire.fleet_messages import PAPER, LatencyEstimate
from wire.messages import Plan


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The plan of one generation.

    Attributes:
        plan: The cloud's part.
        edge_plan: The edge's part.
        origin: Where it comes from: `mode`, `by hand`, `paper` (a searched plan was wanted and none fits), or the name
            of a plan file, with the orchestrator's address where a service chose it.
        why: One line on the choice among searched plans; empty where there was none.
        lines: What the user did not ask for, one line each.
        expected_error: Of the final latents to all-cloud, as the search measured it; None where it did not.
        estimate: Predicted latency; None where too little is known.
        calibration: The factor in the estimate that an orchestrator learned from session reports.
        start_step: First step of the trajectory; above 0 where it starts from a picture.
    """

    plan: Plan
    edge_plan: EdgePlan
    origin: str = "mode"
    why: str = ""
    lines: tuple[str, ...] = ()
    expected_error: float | None = None
    estimate: LatencyEstimate | None = None
    calibration: float = 1.0
    start_step: int = 0

    @property
    def asks_cloud(self) -> bool:
        """Whether the cloud is asked anything; where a bound or the deadline leaves it nothing, the edge is alone."""
        return may_ask_cloud(self.plan, self.edge_plan, start_step=self.start_step)


def decide_from_file(
    found: PlanFile, name: str, options: PlanOptions, *, guidance_scale: float, costs: Costs | None
) -> Decision:
    """Choose among the searched plans of a file that is for this pair, scheduler and step count.

    Args:
        found: The file.
        name: Its name, for people.
        options: What the user asks of a plan; none that makes one by hand.
        guidance_scale: Of the generation.
        costs: What things take now; needed with a deadline.

    Raises:
        ValueError: As `choose_plan`.
    """
    choice = choose_plan(
        found,
        tolerance=options.tolerance,
        max_cloud_calls=options.max_cloud_calls,
        deadline_seconds=None if options.deadline_ms is None else options.deadline_ms / 1000,
        costs=costs,
        corrections=options.corrections,
        shadow=options.shadow,
        handoff_step=options.handoff_step,
    )
    missed = choice.missed_by_seconds * 1000
    lines = [f"no plan meets the deadline: the closest is expected to miss it by {missed:.0f} ms"] if missed else []
    if guidance_scale != found.guidance_scale:
        lines.append(
            f"the plans of {name} were searched at guidance {found.guidance_scale:g}, not at {guidance_scale:g}: "
            "their errors are not those to expect"
        )
    return Decision(
        plan=plan_from_start(choice.plan, options),
        edge_plan=choice.edge_plan,
        start_step=options.start_step,
        origin=name,
        why=f"from noise, {choice.why}; begun at step {options.start_step}" if options.start_step else choice.why,
        lines=tuple(lines),
        # What was measured is a whole trajectory's.
        expected_error=None if options.start_step else choice.error,
        estimate=choice.estimate,
    )


def decide_without_search(options: PlanOptions, why: str, *, costs: Costs | None) -> Decision:
    """Return mode adaptive's plan where no searched one fits: the paper's parameters.

    Args:
        options: What the user asks of a plan.
        why: What there is no searched plan for, in words.
        costs: What things take now.

    Raises:
        ValueError: As `make_plan`.
    """
    plan = make_plan("adaptive", options)
    decision = Decision(
        plan=plan,
        edge_plan=make_edge_plan("adaptive", options),
        start_step=options.start_step,
        origin=PAPER,
        lines=(f"{why}: using the paper's parameters, scaled to {plan.num_inference_steps} steps",),
    )
    return with_estimate(decision, costs)


def with_estimate(decision: Decision, costs: Costs | None) -> Decision:
    """Return the decision with its predicted latency, where the costs are known."""
    if costs is None:
        return decision
    return replace(decision, estimate=predict_latency(decision.plan, decision.edge_plan, costs))
