"""A search's result as a plan file, and the points that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, cloud_calls, make_plan
from orchestrator.search.journal import Journal
from orchestrator.search.measurement import Measurement
from orchestrator.search.pareto import bootstrap_interval
from orchestrator.search.run import Findings, Progress, mean_curve
from orchestrator.searched_plan import PlanFile


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A plan that nobody searched.

    Attributes:
        name: For tables and plots.
        cloud_calls: Evaluations in the cloud.
        handoff_step: First step of the edge model.
        error: Mean relative L2 of the final latents to all-cloud.
        interval: 95 % bootstrap interval of that.
    """

    name: str
    cloud_calls: int
    handoff_step: int
    error: float
    interval: tuple[float, float]


def measure_baselines(measurement: Measurement, journal: Journal, num_steps: int, progress: Progress) -> list[Baseline]:
    """Measure EC-Diff's plan with its handoff and without, Hybrid SD's split, and the edge alone."""
    options = {
        "ecdiff": ("ecdiff", PlanOptions(num_inference_steps=num_steps)),
        "ecdiff, no handoff": ("ecdiff", PlanOptions(num_inference_steps=num_steps, handoff_step=num_steps)),
        "split": ("split", PlanOptions(num_inference_steps=num_steps)),
        "edge": ("edge", PlanOptions(num_inference_steps=num_steps)),
    }
    progress.begin("baselines", len(options))
    found = []
    for name, (mode, chosen) in options.items():
        plan = make_plan(mode, chosen)
        errors = journal.remember(f"baseline:{name}", lambda plan=plan: measurement.run_plan(plan))  # type: ignore[misc]
        found.append(
            Baseline(
                name=name,
                cloud_calls=cloud_calls(plan)[0],
                handoff_step=plan.handoff_step,
                error=fmean(errors),
                interval=bootstrap_interval(errors),
            )
        )
        progress.advance()
    return found


def assemble(
    findings: Findings,
    *,
    pair: InProcessPair,
    scheduler: str,
    guidance_scale: float,
    prompts: Sequence[str],
    seeds: Sequence[int],
    command: str,
    sensitivity: tuple[float, ...],
    tolerance: float,
) -> PlanFile:
    """Return the plan file of what was found."""
    disagreement = mean_curve(findings.disagreement)
    return PlanFile(
        cloud_fingerprint=pair.cloud.info.fingerprint,
        edge_fingerprint=pair.edge.info.fingerprint,
        scheduler=scheduler,
        num_inference_steps=len(disagreement),
        guidance_scale=guidance_scale,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        command=command,
        disagreement=disagreement,
        sensitivity=sensitivity,
        plans=tuple(findings.plans),
        default_tolerance=tolerance,
    )
