"""What the edge decides by itself before a generation starts."""

from __future__ import annotations

from diffusion.model import ModelInfo
from edge_client.file_content import InputFile
from edge_client.request import GenerationRequest
from models import PLANS_DIR
from orchestrator.cost import Costs
from orchestrator.decision import Decision, decide_from_file, decide_without_search, with_estimate
from orchestrator.plan import make_edge_plan
from orchestrator.searched_plan import PlanFile, read_plan_file
from wire.messages import ModelDescription


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
    if cloud is None or not wants_searched_plan(request):
        decision = Decision(
            plan=request.plan,
            edge_plan=make_edge_plan(request.mode, options),
            start_step=options.start_step,
            origin="by hand" if options.by_hand else "mode",
        )
        return with_estimate(decision, costs)
    bundled = PLANS_DIR / f"{request.scheduler}-{options.num_inference_steps}.json"
    name: InputFile = bundled if request.plan_file is None else request.plan_file
    if request.plan_file is None and not bundled.is_file():
        what = f"{request.scheduler} with {options.num_inference_steps} steps"
        return decide_without_search(options, f"no searched plan for {what}", costs=costs)
    found = read_plan_file(name)
    misfit = _misfit(found, request, cloud, edge)
    if misfit is None:
        return decide_from_file(found, name.name, options, guidance_scale=request.weight, costs=costs)
    if request.plan_file is not None:
        raise ValueError(f"{name} {misfit}: search one for this pair (orchestrator search), or leave --plan out")
    return decide_without_search(options, f"the searched plan {misfit}", costs=costs)


def wants_searched_plan(request: GenerationRequest) -> bool:
    """Whether a searched plan is looked for: mode adaptive, and no option that makes a plan by hand."""
    return request.mode == "adaptive" and not request.plan_options.by_hand


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
