"""Which plan a mode means: where the cloud evaluates, where it extrapolates, where it hands off.

The paper's parameters are EC-Diff's (arXiv 2507.11980) for the Stable Diffusion pair at 50 steps, as
its authors' public code has them; for other step counts they are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from orchestrator.refresh import REFRESH_POLICIES, least_real_steps, make_refresh
from wire.messages import MIN_WARMUP_STEPS, Limits, Plan, Source

MODES = ("cloud", "edge", "split", "ecdiff")
CLOUD_MODES = ("cloud", "split", "ecdiff")

# What the cloud can extrapolate with; the mathematics is in diffusion/predictors/, which no decision imports.
PREDICTORS = ("reuse", "ecdiff", "linear", "quadratic", "epsilon-linear", "x0-linear", "chebyshev", "etc")
DEFAULT_NUM_INFERENCE_STEPS = 50
# No cloud takes more unless it was told to, and no picture needs them.
MAX_STEPS = Limits.max_num_inference_steps
PAPER_STEPS = 50
PAPER_WARMUP_STEPS = 7
PAPER_SKIP_INTERVAL = 2
PAPER_SMOOTHING = 0.3
PAPER_HANDOFF_STEP = 37
# Hybrid SD has no one published split; four fifths on the large model is its most quoted setting.
SPLIT_HANDOFF_RATIO = 0.8

T = TypeVar("T")

# Options that say when a step is real; each refresh policy reads some of them.
_REFRESH_OPTIONS = ("warmup_steps", "skip_interval", "final_steps", "tolerance", "real_steps")
_EXTRAPOLATION_OPTIONS = (*_REFRESH_OPTIONS, "smoothing", "predictor", "refresh")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a user may ask of a plan; None leaves the choice to the mode."""

    num_inference_steps: int = DEFAULT_NUM_INFERENCE_STEPS
    handoff_step: int | None = None
    warmup_steps: int | None = None
    skip_interval: int | None = None
    smoothing: float | None = None
    predictor: str | None = None
    refresh: str | None = None
    tolerance: float | None = None
    final_steps: int | None = None
    real_steps: tuple[int, ...] | None = None
    max_cloud_calls: int | None = None


def make_plan(mode: str, options: PlanOptions) -> Plan:
    """Return the plan of `mode` with the user's options.

    Args:
        mode: One of `MODES`.
        options: Explicit values win over the mode's own.

    Raises:
        ValueError: Unknown mode, an option that the mode, its refresh policy or its predictor does not have, a
            value out of range, or an explicit handoff step that needs more cloud calls than `max_cloud_calls`.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    for name in ("num_inference_steps", "warmup_steps", "skip_interval", "final_steps"):
        value = getattr(options, name)
        if value is not None and value > MAX_STEPS:
            raise ValueError(f"{name} must be at most {MAX_STEPS}, not {value}")
    if mode != "ecdiff":
        for name in _EXTRAPOLATION_OPTIONS:
            if getattr(options, name) is not None:
                raise ValueError(f"{name} belongs to mode ecdiff; mode {mode} evaluates every step")
    if mode in ("cloud", "split"):
        plan = _always(mode, options)
    elif mode == "edge":
        if options.handoff_step not in (None, 0):
            raise ValueError("mode edge has no handoff; use --mode split or leave --handoff-step out")
        plan = Plan(num_inference_steps=options.num_inference_steps, handoff_step=0)
    else:
        plan = _ecdiff(options)
    plan = _within_cloud_calls(plan, options)
    make_refresh(plan)  # refuses what does not fit together
    return plan


def _always(mode: str, options: PlanOptions) -> Plan:
    steps = options.num_inference_steps
    default = steps if mode == "cloud" else round(SPLIT_HANDOFF_RATIO * steps)
    handoff_step = default if options.handoff_step is None else options.handoff_step
    return Plan(num_inference_steps=steps, handoff_step=handoff_step)


def _ecdiff(options: PlanOptions) -> Plan:
    """Return the paper's plan with the user's options; another predictor or refresh brings its own defaults."""
    steps = options.num_inference_steps
    scale = steps / PAPER_STEPS

    def pick(value: T | None, default: T) -> T:
        return default if value is None else value

    predictor = pick(options.predictor, "ecdiff")
    if predictor not in PREDICTORS:
        raise ValueError(f"unknown predictor {predictor!r}; choose one of {', '.join(PREDICTORS)}")
    if options.smoothing is not None and predictor != "ecdiff":
        raise ValueError(f"smoothing belongs to predictor ecdiff, not to {predictor}")
    refresh = pick(options.refresh, "fixed" if options.real_steps is None else "listed")
    if refresh not in REFRESH_POLICIES:
        raise ValueError(f"unknown refresh {refresh!r}; choose one of {', '.join(REFRESH_POLICIES)}")
    policy = REFRESH_POLICIES[refresh]
    for name in _REFRESH_OPTIONS:
        if getattr(options, name) is not None and name not in policy.reads:
            readers = ", ".join(each for each, other in REFRESH_POLICIES.items() if name in other.reads)
            raise ValueError(f"{name} means nothing to refresh {refresh}, only to {readers}")
    # The paper's warm-up is for 50 steps; that of the others is what their predictors need.
    warmup_steps = (
        max(MIN_WARMUP_STEPS, round(PAPER_WARMUP_STEPS * scale)) if refresh == "fixed" else policy.warmup_steps
    )
    return Plan(
        num_inference_steps=steps,
        handoff_step=pick(options.handoff_step, round(PAPER_HANDOFF_STEP * scale)),
        refresh=refresh,
        warmup_steps=pick(options.warmup_steps, warmup_steps),
        skip_interval=pick(options.skip_interval, policy.skip_interval),
        predictor=predictor,
        smoothing=pick(options.smoothing, PAPER_SMOOTHING) if predictor == "ecdiff" else 0.0,
        tolerance=pick(options.tolerance, policy.tolerance),
        final_steps=pick(options.final_steps, policy.final_steps),
        real_steps=tuple(pick(options.real_steps, ())),
    )


def _within_cloud_calls(plan: Plan, options: PlanOptions) -> Plan:
    """Hand off before the first real evaluation that the bound forbids, wherever the user fixed no handoff step.

    With a policy that adapts: where the longest intervals that it may leave need one call too many.
    """
    bound = options.max_cloud_calls
    if bound is None:
        return plan
    if bound < 0:
        raise ValueError(f"max_cloud_calls must not be negative, not {bound}")
    real_steps = least_real_steps(plan)
    if options.handoff_step is None and len(real_steps) > bound:
        plan = replace(plan, handoff_step=real_steps[bound])
    # A number that any field can hold; more calls than steps there cannot be.
    return replace(plan, max_cloud_calls=min(bound, plan.num_inference_steps))


def step_sources(plan: Plan) -> list[Source | None]:
    """Return the source of every step; None where the cloud decides at run time."""
    refresh = make_refresh(plan)
    cloud = [refresh.foresee(step_index) for step_index in range(plan.handoff_step)]
    return [*cloud, *[Source.EDGE] * (plan.num_inference_steps - plan.handoff_step)]


def cloud_calls(plan: Plan) -> tuple[int, int]:
    """Return how many evaluations in the cloud a plan makes at least and at most; one number where it decides alone."""
    sources = step_sources(plan)
    most = sources.count(Source.CLOUD) + sources.count(None)
    if plan.max_cloud_calls is not None:
        most = min(most, plan.max_cloud_calls)
    return len(least_real_steps(plan)), most


def parse_steps(text: str) -> tuple[int, ...]:
    """Read a list of steps, such as `0,1,4`.

    Raises:
        ValueError: Unless the text is whole numbers with commas between.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"steps must be whole numbers with commas between, such as 0,1,4, not {text[:80]!r}")
    return tuple(int(part) for part in parts)


def parse_split(text: str) -> tuple[int, int]:
    """Read Hybrid SD's way to write a split: `40,10` is (cloud steps, edge steps).

    Raises:
        ValueError: Unless the text is two non-negative whole numbers with a positive sum.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"steps must be CLOUD,EDGE such as 40,10, not {text!r}")
    cloud, edge = (int(part) for part in parts)
    if cloud + edge < 1:
        raise ValueError(f"steps must add up to at least 1, not {text!r}")
    return cloud, edge
