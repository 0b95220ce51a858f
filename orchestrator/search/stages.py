"""The two stages, on the screen: what is worth running closed loop.

Stage 1, cloud only: for each number of cloud calls and each predictor, where the calls are best made. Stage 2, with the
edge: for each number of cloud calls, how many of them come before the handoff, which residual, and where the calls are.
Both begin with calls that are spread evenly and move them greedily; a start is also what was best with one call more
(stage 1) or with one call less before the handoff (stage 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

from orchestrator.plan import PREDICTORS
from orchestrator.search.candidate import Candidate, Screen, cloud_only, hybrid
from orchestrator.search.placement import Error, improved, spread, thinned
from wire.edge_plan import RESIDUALS
from wire.messages import MIN_WARMUP_STEPS

TRIED_PREDICTORS = tuple(each for each in PREDICTORS if each != "ecdiff")
"""What stage 1 tries; `ecdiff` is `reuse` or worse wherever the steps are not its own."""
TRIED_RESIDUALS = RESIDUALS[:3]
"""What stage 2 tries: the polynomials of degree 0 to 2."""
# Of the predictors, by what evenly spread calls give: the others are rarely the best after any amount of moving.
_IMPROVED_PREDICTORS = 3


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What is searched.

    Attributes:
        coordinates: Ways to lay the steps out, each rising: calls are spread evenly in them to begin with.
        cloud_calls: Numbers of cloud calls of stage 1, rising.
        hybrid_calls: Those of stage 2.
        min_edge_steps: What a plan with a handoff leaves at least to the edge model alone.
        max_error: What a plan may be off by; worse ones are not kept.
        confirm: Candidates of each number of calls, stage and round that are run closed loop.

    Raises:
        ValueError: Fewer calls than a predictor needs, more than there are steps, or too many edge steps.
    """

    coordinates: tuple[tuple[float, ...], ...]
    cloud_calls: tuple[int, ...]
    hybrid_calls: tuple[int, ...]
    min_edge_steps: int
    max_error: float
    confirm: int = 2

    def __post_init__(self) -> None:
        for calls in (*self.cloud_calls, *self.hybrid_calls):
            if not MIN_WARMUP_STEPS <= calls <= self.num_steps:
                raise ValueError(f"cloud calls must lie in {MIN_WARMUP_STEPS}..{self.num_steps}, not {calls}")
        most = self.num_steps - MIN_WARMUP_STEPS
        if not 1 <= self.min_edge_steps <= most:
            raise ValueError(f"min_edge_steps must lie in 1..{most}, not {self.min_edge_steps}")

    @property
    def num_steps(self) -> int:
        """Of every plan."""
        return len(self.coordinates[0])


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate and what the screen says of it."""

    candidate: Candidate
    error: float


def propose_cloud_only(
    screen: Screen, settings: SearchSettings, on_budget: Callable[[], object] = lambda: None
) -> dict[int, list[Scored]]:
    """Stage 1: return for each number of calls the best placement under each predictor, best first."""
    errors = {predictor: _cloud_only_error(screen, settings.num_steps, predictor) for predictor in TRIED_PREDICTORS}
    found: dict[int, list[Scored]] = {}
    more: dict[str, tuple[int, ...]] = {}
    for num_calls in reversed(settings.cloud_calls):
        starts = {}
        for predictor, error in errors.items():
            tried = [spread(num_calls, each) for each in settings.coordinates]
            if predictor in more:
                tried.append(_thinned_to(num_calls, more[predictor], error))
            starts[predictor] = min(tried, key=error)
        promising = sorted(starts, key=lambda predictor: errors[predictor](starts[predictor]))[:_IMPROVED_PREDICTORS]
        more, scored = {}, []
        for predictor in promising:
            more[predictor], least = improved(starts[predictor], errors[predictor], settings.num_steps)
            scored.append(Scored(candidate=cloud_only(more[predictor], settings.num_steps, predictor), error=least))
        found[num_calls] = _best_first(scored)
        on_budget()
    return dict(sorted(found.items()))


def _thinned_to(num_calls: int, calls: tuple[int, ...], error: Error) -> tuple[int, ...]:
    while len(calls) > num_calls:
        calls = thinned(calls, error)
    return calls


def _cloud_only_error(screen: Screen, num_steps: int, predictor: str) -> Error:
    @cache
    def error(calls: tuple[int, ...]) -> float:
        return screen.error(cloud_only(calls, num_steps, predictor))

    return error


def propose_hybrids(
    screen: Screen,
    settings: SearchSettings,
    cloud_only_plans: dict[int, list[Scored]],
    on_budget: Callable[[], object] = lambda: None,
) -> dict[int, list[Scored]]:
    """Stage 2: return for each number of calls the best candidate of each number of corrections, best first.

    Args:
        screen: Guesses errors.
        settings: What is searched.
        cloud_only_plans: Of stage 1: their best predictor is taken.
        on_budget: Told when a number of calls is done.
    """
    found = {}
    for num_calls in settings.hybrid_calls:
        known = cloud_only_plans.get(num_calls, [])
        predictor = known[0].candidate.predictor if known else "linear"
        best: dict[int, Scored] = {}
        for residual in TRIED_RESIDUALS:
            for scored in _by_corrections(screen, settings, num_calls, predictor, residual):
                corrections = len(scored.candidate.correction_steps)
                if corrections not in best or scored.error < best[corrections].error:
                    best[corrections] = scored
        found[num_calls] = _best_first(best.values())
        on_budget()
    return found


def _by_corrections(
    screen: Screen, settings: SearchSettings, num_calls: int, predictor: str, residual: str
) -> Iterable[Scored]:
    """Yield the best placement for each number of calls before the handoff, from the fewest on."""
    fewer_real: tuple[int, ...] = ()
    for num_real in range(MIN_WARMUP_STEPS, num_calls + 1):

        @cache
        def error(calls: tuple[int, ...], num_real: int = num_real) -> float:
            candidate = hybrid(calls, num_real, predictor, residual)
            too_late = candidate.edge_steps(settings.num_steps) < settings.min_edge_steps
            return math.inf if too_late else screen.error(candidate)

        latest = settings.num_steps - settings.min_edge_steps - (num_calls - num_real)
        if latest < num_real:
            return
        starts = [_spread_hybrid(num_calls, num_real, latest, each) for each in settings.coordinates]
        start = min([*starts, fewer_real] if fewer_real else starts, key=error)
        fewer_real, least = improved(start, error, settings.num_steps)
        yield Scored(candidate=hybrid(fewer_real, num_real, predictor, residual), error=least)


def _spread_hybrid(num_calls: int, num_real: int, latest: int, coordinates: Sequence[float]) -> tuple[int, ...]:
    """Return evenly spread calls whose handoff is at most at step `latest`."""
    calls = spread(num_calls, coordinates)
    if calls[num_real - 1] < latest:
        return calls
    head = spread(num_real, coordinates, last_step=latest - 1)
    tail = len(coordinates) - latest
    corrections = num_calls - num_real
    return head + tuple(latest + tail * (2 * k + 1) // (2 * corrections) for k in range(corrections))


def to_confirm(proposed: dict[int, list[Scored]], settings: SearchSettings) -> list[Scored]:
    """Return what to run closed loop, the most promising of every number of calls first.

    Beside the best ones that is, of each number of calls, the earliest handoff that the screen allows.
    """
    chosen = []
    for each in proposed.values():
        allowed = [scored for scored in each if scored.error <= settings.max_error]
        best = allowed[: settings.confirm]
        earliest = min(allowed, key=lambda scored: scored.candidate.handoff_step, default=None)
        chosen.append([*best, *([earliest] if earliest and earliest not in best else [])])
    return [scored for rank in zip_longest(*chosen) for scored in rank if scored is not None]


def _best_first(scored: Iterable[Scored]) -> list[Scored]:
    return sorted((each for each in scored if math.isfinite(each.error)), key=lambda each: each.error)
