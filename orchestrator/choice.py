"""Which plan of a file a generation runs: by the error allowed, the calls allowed, and the deadline.

1. Plans that need more cloud calls than are allowed are out, and with a deadline those predicted to miss it.
2. Of what is left: the fewest cloud calls whose error is within the tolerance; where none is, the least error. Of
   equal calls a plan that hands off comes first: the cloud is free sooner, and only it asks more for a harder prompt.
3. Where a bound on calls or the deadline leaves none: the cheapest plan of the file, cut to fewer calls. It keeps its
   first calls and drops the rest: corrections first, then real steps, and the edge leads from where the next real step
   would have been. One call leaves one real step, no call the edge alone. Nobody measured the error of a cut plan.
4. Where not even the edge alone is predicted to meet the deadline: the fastest, and by how much it will miss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cost import Costs, expected_corrections, predict_latency
from orchestrator.searched_plan import PlanFile, SearchedPlan
from orchestrator.searched_run import plan_and_edge_plan, real_steps_before
from wire.edge_plan import EdgePlan
from wire.fleet_messages import LatencyEstimate
from wire.messages import Plan


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to run, and why.

    Attributes:
        searched: The plan of the file that it comes from.
        plan: The cloud's part.
        edge_plan: The edge's part.
        error: Of the final latents, as the search measured it; None where nobody measured it: of a cut plan, of an
            explicit handoff step before which the edge may not take over, without the plan's corrections or shadow.
        estimate: What it is predicted to take; None where no costs were given.
        missed_by_seconds: By how much it is predicted to miss the deadline; 0 where it meets it or there is none.
        why: One plain line.
    """

    searched: SearchedPlan
    plan: Plan
    edge_plan: EdgePlan
    error: float | None
    estimate: LatencyEstimate | None
    missed_by_seconds: float
    why: str


def choose_plan(
    file: PlanFile,
    *,
    tolerance: float | None = None,
    max_cloud_calls: int | None = None,
    deadline_seconds: float | None = None,
    costs: Costs | None = None,
    corrections: str | None = None,
    shadow: bool = True,
    handoff_step: int | None = None,
) -> Choice:
    """Choose by the rules above.

    Args:
        file: The searched plans.
        tolerance: Error of the final latents that is allowed; None: the file's own.
        max_cloud_calls: Hard bound on evaluations in the cloud, corrections included.
        deadline_seconds: From now to the picture.
        costs: What things take; needed with a deadline.
        corrections: See `plan_and_edge_plan`, as the next two.
        shadow: See there.
        handoff_step: See there. A plan's error is then what its curve says of that step.

    Raises:
        ValueError: A deadline without costs, or an explicit handoff step that no plan reaches with so few calls.
    """
    if deadline_seconds is not None and costs is None:
        raise ValueError("a deadline needs the costs to predict with")
    allowed = file.default_tolerance if tolerance is None else tolerance
    make = functools.partial(
        plan_and_edge_plan, file, tolerance=allowed, corrections=corrections, shadow=shadow, handoff_step=handoff_step
    )
    candidates = _candidates(file, make, max_cloud_calls, costs, handoff_step)
    deadline = math.inf if deadline_seconds is None else deadline_seconds
    in_time = [each for each in candidates if each.seconds <= deadline]
    if not in_time:
        best = min(candidates, key=lambda each: (each.seconds, each.cloud_calls))
    elif within := [each for each in in_time if each.error <= allowed]:
        best = min(within, key=lambda each: (each.cloud_calls, each.edge_plan.agreement is None, each.error))
    else:
        # Of two errors that nobody measured, that of the plan with more calls is the smaller one.
        best = min(in_time, key=lambda each: (each.error, -each.cloud_calls if each.is_cut else each.cloud_calls))
    missed_by_seconds = 0.0 if in_time else best.seconds - deadline
    return Choice(
        searched=best.searched,
        plan=best.plan,
        edge_plan=best.edge_plan,
        error=best.error if best.is_as_searched and math.isfinite(best.error) else None,
        estimate=best.estimate,
        missed_by_seconds=missed_by_seconds,
        why=_why(best, allowed, deadline, missed_by_seconds),
    )


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A plan that could be run."""

    searched: SearchedPlan
    plan: Plan
    edge_plan: EdgePlan
    estimate: LatencyEstimate | None
    cloud_calls: int
    error: float
    is_cut: bool

    @property
    def seconds(self) -> float:
        """Predicted; 0 where no costs were given."""
        return 0.0 if self.estimate is None else self.estimate.total_seconds

    @property
    def is_as_searched(self) -> bool:
        """Whether the edge shadows and corrects as it did in the search."""
        own = "planned" if self.searched.correction_steps else "none"
        whole = self.plan.handoff_step == self.plan.num_inference_steps and self.edge_plan.agreement is None
        shadows = self.edge_plan.shadow or self.searched.residual is None
        return whole or (shadows and self.edge_plan.corrections == own)


def _candidate(
    searched: SearchedPlan,
    plans: tuple[Plan, EdgePlan],
    costs: Costs | None,
    handoff_step: int | None,
    *,
    is_cut: bool = False,
) -> _Candidate:
    plan, edge_plan = plans
    step = min(searched.handoff_step, plan.handoff_step) if handoff_step is None else handoff_step
    num_real = len(real_steps_before(searched, step))
    error = searched.error if handoff_step is None else searched.tail_error[handoff_step]
    return _Candidate(
        searched=searched,
        plan=plan,
        edge_plan=edge_plan,
        estimate=None if costs is None else predict_latency(plan, edge_plan, costs),
        cloud_calls=num_real + expected_corrections(plan, edge_plan, step, num_real),
        error=math.inf if is_cut else error,
        is_cut=is_cut,
    )


def _candidates(
    file: PlanFile,
    make: Callable[..., tuple[Plan, EdgePlan]],
    max_cloud_calls: int | None,
    costs: Costs | None,
    handoff_step: int | None,
) -> list[_Candidate]:
    """Return the file's plans within the bound on calls, and the cheapest one cut to each smaller number of calls.

    Raises:
        ValueError: The explicit handoff step needs more calls than are allowed.
    """
    bound = math.inf if max_cloud_calls is None else max_cloud_calls
    unbounded = [_candidate(each, make(each), costs, handoff_step) for each in file.plans]
    found = [
        _candidate(each.searched, make(each.searched, max_cloud_calls=max_cloud_calls), costs, handoff_step)
        for each in unbounded
        if each.cloud_calls <= bound
    ]
    cheapest = min(unbounded, key=lambda each: (each.cloud_calls, each.error))
    fewest = 0 if handoff_step is None else len(real_steps_before(cheapest.searched, handoff_step))
    for num_calls in range(int(min(cheapest.cloud_calls - 1, bound)), fewest - 1, -1):
        plans = make(cheapest.searched, max_cloud_calls=num_calls)
        found.append(_candidate(cheapest.searched, plans, costs, handoff_step, is_cut=True))
    if not found:
        raise ValueError(
            f"handoff_step {handoff_step} needs {fewest} cloud calls but max_cloud_calls is {max_cloud_calls}: "
            "lower the handoff step or raise the bound"
        )
    return found


def _why(best: _Candidate, tolerance: float, deadline_seconds: float, missed_by_seconds: float) -> str:
    calls = f"{best.cloud_calls} cloud call{'' if best.cloud_calls == 1 else 's'}"
    aside = "" if best.is_as_searched else " with the shadow and the plan's own corrections"
    error = f"an error of {best.error:.3g}{aside}" if math.isfinite(best.error) else "an error that nobody measured"
    if missed_by_seconds > 0.0:
        return (
            f"no plan meets the deadline of {1000 * deadline_seconds:.0f} ms: the fastest, with {calls} and {error}, "
            f"will miss it by about {1000 * missed_by_seconds:.0f} ms"
        )
    if best.error <= tolerance:
        return f"{calls} are the fewest that keep the error within {tolerance:g}: about {best.error:.3g}{aside}"
    limit = "" if math.isinf(deadline_seconds) else f" in {1000 * deadline_seconds:.0f} ms"
    return (
        f"no plan that may be run reaches an error of {tolerance:g}{limit}: the most exact one has {calls} and {error}"
    )
