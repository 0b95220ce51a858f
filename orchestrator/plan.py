"""Which plan a mode means: where the cloud evaluates, where it extrapolates, where it hands off.

The paper's parameters are EC-Diff's (arXiv 2507.11980) for the Stable Diffusion pair at 50 steps, as
its authors' public code has them; for other step counts they are scaled.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import TypeVar

from orchestrator.refresh import REFRESH_POLICIES, least_real_steps, make_refresh
from wire.edge_plan import EdgePlan
from wire.messages import MIN_WARMUP_STEPS, Limits, Plan, Source

MODES = ("cloud", "edge", "split", "ecdiff", "adaptive")
CLOUD_MODES = ("cloud", "split", "ecdiff", "adaptive")
DEFAULT_MODE = "adaptive"

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
# Without a search nobody knows how fast the residual grows: the last one, as it is, never runs away.
UNSEARCHED_RESIDUAL = "reuse"
# Hybrid SD has no one published split; four fifths on the large model is its most quoted setting.
SPLIT_HANDOFF_RATIO = 0.8

T = TypeVar("T")

# Options that say when a step is real; each refresh policy reads some of them.
_REFRESH_OPTIONS = ("warmup_steps", "skip_interval", "final_steps", "tolerance", "real_steps")
_EXTRAPOLATION_OPTIONS = (
    "warmup_steps",
    "skip_interval",
    "final_steps",
    "real_steps",
    "smoothing",
    "predictor",
    "refresh",
)
_EDGE_OPTIONS = ("corrections", "deadline_ms")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a user may ask of a plan; None leaves the choice to the mode.

    `tolerance` is that of a refresh policy that reads one; else the error of the final latents that mode adaptive
    allows. `strength` is the part of the steps that a picture to start from still passes, above 0 and at most 1.
    """

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
    corrections: str | None = None
    shadow: bool = True
    deadline_ms: float | None = None
    strength: float | None = None

    @property
    def start_step(self) -> int:
        """First step of the trajectory: from a picture as in diffusers' image-to-image pipelines, else 0."""
        if self.strength is None:
            return 0
        return self.num_inference_steps - min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    @property
    def by_hand(self) -> bool:
        """Whether the user says how the cloud extrapolates: then no searched plan is used."""
        return any(getattr(self, name) is not None for name in _EXTRAPOLATION_OPTIONS)


def make_plan(mode: str, options: PlanOptions) -> Plan:
    """Return the cloud's plan of `mode` with the user's options; for adaptive, the one without a search.

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
    _check_options(mode, options)
    if mode in ("cloud", "split"):
        plan = _always(mode, options)
    elif mode == "edge":
        if options.handoff_step not in (None, 0):
            raise ValueError("mode edge has no handoff; use --mode split or leave --handoff-step out")
        plan = Plan(num_inference_steps=options.num_inference_steps, handoff_step=0)
    else:
        plan = _ecdiff(replace(options, tolerance=None) if _is_the_edges(mode, options) else options)
    plan = _within_cloud_calls(plan_from_start(plan, options), options)
    make_refresh(plan, start_step=options.start_step)  # refuses what does not fit together
    return plan


def plan_from_start(plan: Plan, options: PlanOptions) -> Plan:
    """Return the plan of a trajectory that begins at its start step: the edge leads at once where it would by then.

    Raises:
        ValueError: The user fixed a handoff before the start.
    """
    start_step = options.start_step
    if options.handoff_step is not None and options.handoff_step < start_step:
        raise ValueError(
            f"handoff_step {options.handoff_step} lies before step {start_step}, where strength {options.strength:g} "
            "starts: hand off there or later, or raise the strength"
        )
    return replace(plan, handoff_step=max(plan.handoff_step, start_step))


def make_edge_plan(mode: str, options: PlanOptions) -> EdgePlan:
    """Return the edge's part of `mode` with the user's options; for adaptive, the one without a search.

    Raises:
        ValueError: As `make_plan`, for the edge's options.
    """
    if mode != "adaptive":
        return EdgePlan(max_cloud_calls=options.max_cloud_calls)
    corrections = options.corrections or "none"
    if corrections == "planned":
        raise ValueError("corrections planned needs a searched plan: leave the options out that make one by hand")
    return EdgePlan(
        shadow=options.shadow,
        residual=UNSEARCHED_RESIDUAL,
        reach=least_reach(options.num_inference_steps),
        corrections=corrections,
        tolerance=(options.tolerance or 0.0) if _is_the_edges(mode, options) else 0.0,
        max_cloud_calls=options.max_cloud_calls,
    )


def _check_options(mode: str, options: PlanOptions) -> None:
    given = [name for name in (*_EXTRAPOLATION_OPTIONS, "tolerance") if getattr(options, name) is not None]
    if mode not in ("ecdiff", "adaptive") and given:
        raise ValueError(f"{given[0]} belongs to modes ecdiff and adaptive; mode {mode} evaluates every step")
    for name, low in (("deadline_ms", sys.float_info.min), ("tolerance", 0.0)):
        value = getattr(options, name)
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"{name} must be {'a positive number' if low else 'a number of at least 0'}, not {value}")
    if options.strength is not None:
        _check_strength(options.strength, options)
    if mode == "adaptive":
        return
    for name in _EDGE_OPTIONS:
        if getattr(options, name) is not None:
            raise ValueError(f"{name} belongs to mode adaptive, not to {mode}")
    if not options.shadow:
        raise ValueError(f"--no-shadow belongs to mode adaptive; mode {mode} has no shadow")


def _check_strength(strength: float, options: PlanOptions) -> None:
    if not 0.0 < strength <= 1.0:  # NaN is neither
        raise ValueError(f"strength must lie above 0 and at most at 1, not {strength}")
    steps = options.num_inference_steps
    if 1 <= steps == options.start_step:
        raise ValueError(f"strength {strength:g} leaves none of {steps} steps to run: at least {1 / steps:.2g} does")


def _is_the_edges(mode: str, options: PlanOptions) -> bool:
    """Whether the tolerance is for the edge's decisions, not for the refresh policy's."""
    policy = REFRESH_POLICIES.get(options.refresh or "fixed")
    return mode == "adaptive" and policy is not None and "tolerance" not in policy.reads


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
    real_steps = least_real_steps(plan, start_step=options.start_step)
    if options.handoff_step is None and len(real_steps) > bound:
        plan = replace(plan, handoff_step=real_steps[bound])
    # A number that any field can hold; more calls than steps there cannot be.
    return replace(plan, max_cloud_calls=min(bound, plan.num_inference_steps))


def least_reach(num_inference_steps: int) -> int:
    """Return for how many steps any residual is trusted: a fifth of them, which on the bundled pair never did harm."""
    return max(1, num_inference_steps // 5)


def step_sources(plan: Plan, *, start_step: int = 0) -> list[Source | None]:
    """Return the source of every step from `start_step` on (before it, nothing of use); None: decided at run time."""
    refresh = make_refresh(plan, start_step=start_step)
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
