"""What is decided before a generation starts: the plan that the cloud gets, and the edge's own part of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffusion.model import ModelInfo
from edge_client.file_content import InputFile
from edge_client.request import GenerationRequest
from models import PLANS_DIR
from orchestrator.choice import choose_plan
from orchestrator.cost import Costs, may_ask_cloud, predict_latency
from orchestrator.plan import make_edge_plan
from orchestrator.searched_plan import PlanFile, read_plan_file
from wire.edge_plan import EdgePlan
from wire.fleet_messages import LatencyEstimate
from wire.messages import ModelDescription, Plan


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The plan of one generation.

    Attributes:
        plan: The cloud's part.
        edge_plan: The edge's part.
        origin: Where it comes from: `mode`, `by hand`, `paper` (a searched plan was wanted and none fits), or the name
            of a plan file.
        why: One line on the choice among searched plans; empty where there was none.
        lines: What the user did not ask for, one line each.
        expected_error: Of the final latents to all-cloud, as the search measured it; None where it did not.
        estimate: Predicted latency; None without a deadline.
    """

    plan: Plan
    edge_plan: EdgePlan
    origin: str = "mode"
    why: str = ""
    lines: tuple[str, ...] = ()
    expected_error: float | None = None
    estimate: LatencyEstimate | None = None

    @property
    def asks_cloud(self) -> bool:
        """Whether the cloud is asked anything; where a bound or the deadline leaves it nothing, the edge is alone."""
        return may_ask_cloud(self.plan, self.edge_plan)


def decide(
    request: GenerationRequest, cloud: ModelDescription | ModelInfo | None, edge: ModelInfo, costs: Costs | None
) -> Decision:
    """Decide for one request.

    Args:
        request: What is asked for.
        cloud: The model that is served; None in mode edge.
        edge: The model here.
        costs: What things take now; None without a deadline.

    Raises:
        ValueError: An explicit `--plan` that does not fit the pair, the scheduler or the step count.
        OSError: It cannot be read.
    """
    options = request.plan_options
    if request.mode != "adaptive" or cloud is None or options.by_hand:
        decision = Decision(
            plan=request.plan,
            edge_plan=make_edge_plan(request.mode, options),
            origin="by hand" if options.by_hand else "mode",
        )
        return _with_estimate(decision, request, costs)
    bundled = PLANS_DIR / f"{request.scheduler}-{options.num_inference_steps}.json"
    name: InputFile = bundled if request.plan_file is None else request.plan_file
    if request.plan_file is None and not bundled.is_file():
        what = f"{request.scheduler} with {options.num_inference_steps} steps"
        return _papers(request, f"no searched plan for {what}", costs)
    found = read_plan_file(name)
    misfit = _misfit(found, request, cloud, edge)
    if misfit is None:
        return _searched(found, name, request, costs)
    if request.plan_file is not None:
        raise ValueError(f"{name} {misfit}: search one for this pair (orchestrator search), or leave --plan out")
    return _papers(request, f"the searched plan {misfit}", costs)


def _misfit(
    found: PlanFile, request: GenerationRequest, cloud: ModelDescription | ModelInfo, edge: ModelInfo
) -> str | None:
    """Return what of the request a plan file was not made for."""
    steps = request.plan_options.num_inference_steps
    for what, made_for, asked in (
        ("another cloud model", found.cloud_fingerprint, cloud.fingerprint),
        ("another edge model", found.edge_fingerprint, edge.fingerprint),
        (f"scheduler {found.scheduler}, not {request.scheduler}", found.scheduler, request.scheduler),
        (f"{found.num_inference_steps} steps, not {steps}", found.num_inference_steps, steps),
    ):
        if made_for != asked:
            return f"is for {what}"
    return None


def _searched(found: PlanFile, name: InputFile, request: GenerationRequest, costs: Costs | None) -> Decision:
    options = request.plan_options
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
    if request.guidance_scale != found.guidance_scale:
        lines.append(
            f"the plans of {name.name} were searched at guidance {found.guidance_scale:g}, not at "
            f"{request.guidance_scale:g}: their errors are not those to expect"
        )
    return Decision(
        plan=choice.plan,
        edge_plan=choice.edge_plan,
        origin=name.name,
        why=choice.why,
        lines=tuple(lines),
        expected_error=choice.error,
        estimate=choice.estimate,
    )


def _papers(request: GenerationRequest, why: str, costs: Costs | None) -> Decision:
    plan = request.plan
    decision = Decision(
        plan=plan,
        edge_plan=make_edge_plan(request.mode, request.plan_options),
        origin="paper",
        lines=(f"{why}: using the paper's parameters, scaled to {plan.num_inference_steps} steps",),
    )
    return _with_estimate(decision, request, costs)


def _with_estimate(decision: Decision, request: GenerationRequest, costs: Costs | None) -> Decision:
    if costs is None:
        return decision
    return replace(decision, estimate=predict_latency(decision.plan, decision.edge_plan, costs))
