"""The whole search, over injected models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol

from orchestrator.search.candidate import Candidate, Screen, cloud_only, hybrid
from orchestrator.search.journal import Journal, candidate_key
from orchestrator.search.pareto import (
    Confirmed,
    bootstrap_interval,
    is_finite,
    kept_cloud_only,
    kept_hybrids,
    rank_correlation,
)
from orchestrator.search.placement import spread
from orchestrator.search.stages import (
    Scored,
    SearchSettings,
    propose_cloud_only,
    propose_hybrids,
    to_confirm,
)
from orchestrator.search.tail import Tail, make_tail, scale_correlations, tail_errors
from orchestrator.searched_plan import SearchedPlan

# Of the first screen, before any better candidate is known: as many as leave visible errors at any step count.
_PROBE_CALLS = 7
# The fade of a plan is written with so many digits.
_FADE_DIGITS = 4


class Laboratory(Protocol):
    """Real models on the search prompts (`orchestrator.search.measurement.Measurement`)."""

    def record(self) -> list[list[float]]:
        """Run the reference; return q of each prompt at each step."""
        ...

    def run(self, candidate: Candidate) -> Sequence[float]:
        """Run a candidate closed loop; return the error of each prompt."""
        ...

    def responses(self, probes: Sequence[Candidate]) -> Sequence[float]:
        """Measure how predictions change with the latents, where these candidates pass."""
        ...

    def screen(self, responses: Sequence[float]) -> Screen:
        """Return the screen that responses give."""
        ...


class Progress(Protocol):
    """Who is told how far the search is."""

    def begin(self, phase: str, total: int) -> None:
        """A phase of so many parts begins."""
        ...

    def advance(self) -> None:
        """One part is done."""
        ...


@dataclass(kw_only=True)
class Findings:
    """What a search found.

    Attributes:
        disagreement: q of each prompt at each step.
        confirmed: Everything that was run closed loop and gave pictures.
        plans: The Pareto set, by rising cloud calls.
        tails: The hybrid plans among them with their measured errors by handoff step.
        ranking: Rank correlation of screen and closed loop over all candidates; None where nothing could be ranked.
        scale: Rank correlation over the prompts of scale and error, one for each measured handoff.
        num_left_out: Candidates that there was no time to run.
    """

    disagreement: list[list[float]]
    confirmed: list[Confirmed] = field(default_factory=list)
    plans: list[SearchedPlan] = field(default_factory=list)
    tails: list[tuple[Tail, dict[int, tuple[float, ...]]]] = field(default_factory=list)
    ranking: float | None = None
    scale: list[float] = field(default_factory=list)
    num_left_out: int = 0


class Search:
    """One search.

    Args:
        laboratory: Real models.
        settings: What is searched.
        journal: Of measured results.
        progress: Told how far it is.
        num_rounds: Screens; each but the first measures the responses where the best candidates so far pass.
        affords: Whether there is time for more closed-loop runs; what is known from the journal is used anyway.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        settings: SearchSettings,
        journal: Journal,
        progress: Progress,
        *,
        num_rounds: int = 1,
        affords: Callable[[], bool] = lambda: True,
    ) -> None:
        self._laboratory = laboratory
        self._settings = settings
        self._journal = journal
        self._progress = progress
        self._num_rounds = num_rounds
        self._affords = affords
        self._confirmed: dict[str, Confirmed] = {}
        self._left_out: set[str] = set()

    def run(self) -> Findings:
        """Search."""
        self._progress.begin("reference", 1)
        findings = Findings(disagreement=self._laboratory.record())
        probes = self._first_probes()
        for number in range(1, self._num_rounds + 1):
            screen = self._screen(probes, number)
            self._confirm(self._propose(screen, number), screen, number)
            probes = self._best_probes() or probes
        findings.confirmed = list(self._confirmed.values())
        findings.ranking = rank_correlation(
            [each.screened for each in findings.confirmed], [each.error for each in findings.confirmed]
        )
        whole, parted = self._kept()
        findings.tails = self._measure_tails(parted)
        findings.scale = scale_correlations(findings.tails, findings.disagreement)
        findings.plans = sorted(
            [
                *(self._cloud_only_plan(each) for each in whole),
                *(
                    self._hybrid_plan(each, tail, measured, screen)
                    for each, (tail, measured) in zip(parted, findings.tails, strict=True)
                ),
            ],
            key=lambda plan: (plan.cloud_calls, len(plan.correction_steps), plan.error),
        )
        findings.num_left_out = len(self._left_out)
        return findings

    def _first_probes(self) -> list[Candidate]:
        num_steps = self._settings.num_steps
        calls = spread(min(_PROBE_CALLS, num_steps), self._settings.coordinates[0])
        probes = [cloud_only(calls, num_steps, "linear")]
        return probes if len(calls) < 3 else [*probes, hybrid(calls, 2, "linear", "linear")]

    def _best_probes(self) -> list[Candidate]:
        """Return the best candidates known of about that many calls, without a handoff and with one."""
        probes = []
        for parted in (False, True):
            known = [each for each in self._confirmed.values() if (each.candidate.residual is not None) == parted]
            calls = min((each.candidate.cloud_calls for each in known), key=lambda c: abs(c - _PROBE_CALLS), default=0)
            same = [each for each in known if each.candidate.cloud_calls == calls]
            probes += [min(same, key=lambda each: each.error).candidate] if same else []
        return probes

    def _screen(self, probes: Sequence[Candidate], number: int) -> Screen:
        self._progress.begin(f"responses {number}", 1)
        key = "responses:" + ";".join(map(candidate_key, probes))
        return self._laboratory.screen(self._journal.remember(key, lambda: self._laboratory.responses(probes)))

    def _propose(self, screen: Screen, number: int) -> list[Scored]:
        settings = self._settings
        self._progress.begin(f"screen {number}", len(settings.cloud_calls) + len(settings.hybrid_calls))
        whole = propose_cloud_only(screen, settings, self._progress.advance)
        parted = propose_hybrids(screen, settings, whole, self._progress.advance)
        return [*to_confirm(whole, settings), *to_confirm(parted, settings)]

    def _confirm(self, proposed: Sequence[Scored], screen: Screen, number: int) -> None:
        self._progress.begin(f"closed loop {number}", len(proposed))
        for scored in proposed:
            fade = tuple(round(each, _FADE_DIGITS) for each in screen.fade(scored.candidate))
            candidate = replace(scored.candidate, fade=fade)
            errors = self._measured(candidate)
            if errors is not None and is_finite(errors):
                confirmed = Confirmed(candidate=candidate, screened=scored.error, errors=errors)
                self._confirmed[candidate_key(candidate)] = confirmed
            self._progress.advance()

    def _measured(self, candidate: Candidate) -> tuple[float, ...] | None:
        """Return the closed-loop errors; None where there is no time."""
        key = candidate_key(candidate)
        if key not in self._journal.results and not self._affords():
            self._left_out.add(key)
            return None
        return self._journal.remember(key, lambda: self._laboratory.run(candidate))

    def _kept(self) -> tuple[list[Confirmed], list[Confirmed]]:
        """Return the Pareto sets without a handoff and with one."""
        every = list(self._confirmed.values())
        least, most = self._settings.min_edge_steps, self._settings.max_error
        whole = [each for each in every if each.candidate.handoff_step == self._settings.num_steps]
        parted = [each for each in every if each.candidate.edge_steps(self._settings.num_steps) >= least]
        return kept_cloud_only(whole, most), kept_hybrids(parted, most)

    def _measure_tails(self, plans: Sequence[Confirmed]) -> list[tuple[Tail, dict[int, tuple[float, ...]]]]:
        tails = [make_tail(each.candidate, self._settings.num_steps) for each in plans]
        self._progress.begin("tails", sum(len(tail.anchors()) for tail in tails))
        found = []
        for plan, tail in zip(plans, tails, strict=True):
            measured = {tail.plan.handoff_step: plan.errors}
            for handoff_step in tail.anchors():
                errors = self._measured(tail.at(handoff_step))
                if errors is not None and is_finite(errors):
                    measured[handoff_step] = errors
                self._progress.advance()
            found.append((tail, measured))
        return found

    def _cloud_only_plan(self, found: Confirmed) -> SearchedPlan:
        num_steps = self._settings.num_steps
        return self._plan(found, found.candidate.real_steps, num_steps, (float("inf"),) * num_steps + (found.error,))

    def _hybrid_plan(
        self, found: Confirmed, tail: Tail, measured: Mapping[int, Sequence[float]], screen: Screen
    ) -> SearchedPlan:
        return self._plan(found, tail.real_steps, tail.num_steps, tail_errors(tail, measured, screen))

    def _plan(
        self, found: Confirmed, real_steps: tuple[int, ...], latest: int, tail_error: tuple[float, ...]
    ) -> SearchedPlan:
        candidate = found.candidate
        return SearchedPlan(
            real_steps=real_steps,
            handoff_step=candidate.handoff_step,
            latest_handoff_step=latest,
            correction_steps=candidate.correction_steps,
            predictor=candidate.predictor,
            residual=candidate.residual,
            fade=candidate.fade,
            tail_error=tail_error,
            cloud_calls=candidate.cloud_calls,
            edge_steps=candidate.edge_steps(self._settings.num_steps),
            error=found.error,
            error_interval=bootstrap_interval(found.errors),
        )


def mean_curve(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean over the prompts at each step."""
    return tuple(fmean(step) for step in zip(*curves, strict=True))
