"""Parameters chosen on search prompts: the rivals get theirs as the plans of this project do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.quality.cases import Case, all_cloud, fixed_steps
from bench.quality.figures import SOLVERS_WITHOUT_NOISE, relative_errors
from bench.quality.log_snr import LOG_SNR
from bench.quality.runner import Made, Runner
from wire.messages import Plan

SPACINGS = ("leading", "linspace", "trailing")
WARMUPS = (2, 3, 5, 7)
SMOOTHINGS = (0.0, 0.1, 0.2, 0.5)
HANDOFF_TENTHS = (5, 6, 7, 8)
# Of the first round: long gaps want a small one.
FIRST_SMOOTHINGS = (0.05, 0.3)
# How steps crowd towards the noisy end: step j of n lies at (j / n) ** crowding of the way.
CROWDINGS = (0.8, 1.0, 1.3)
PREDICTORS = ("linear", "quadratic", "x0-linear", "chebyshev")


@dataclass(frozen=True)
class Chooser:
    """Picks the best of some cases on search prompts.

    Attributes:
        runner: Of the search prompts.
        reference: What all-cloud makes of them.
        converged: What it makes with many more steps.
        note: Told what is being chosen.
    """

    runner: Runner
    reference: Made
    converged: Made
    note: Callable[[str], object] = lambda text: None

    def best(self, cases: Sequence[Case], *, converged: bool = False) -> list[Case]:
        """Return the case of the least error, with what it was chosen by."""
        scored = []
        for case in cases:
            self.note(case.name)
            made = self.runner.run(case)
            errors = [float(np.mean(relative_errors(case, made, each))) for each in (self.reference, self.converged)]
            scored.append(replace(case, chosen_error=errors[0], chosen_converged_error=errors[1]))
        key = "chosen_converged_error" if converged else "chosen_error"
        return sorted(scored, key=lambda case: getattr(case, key))[:1]

    def ecdiff(self, budget: int, num_steps: int, *, cloud_only: bool) -> list[Case]:
        """Return EC-Diff's best p, k, a and s with so many cloud calls: first p, k and s, then a closer look at a."""
        handoffs = [num_steps] if cloud_only else [num_steps * tenth // 10 for tenth in HANDOFF_TENTHS]
        cases = [
            _ecdiff_case(budget, num_steps, p, k, a, s)
            for p in WARMUPS
            for s in handoffs
            for k in _intervals(p, s, budget)
            for a in FIRST_SMOOTHINGS
        ]
        if not cases:
            return []
        first = self.best(cases)
        plan = first[0].plan
        others = [
            _ecdiff_case(budget, num_steps, plan.warmup_steps, plan.skip_interval, a, plan.handoff_step)
            for a in SMOOTHINGS
        ]
        return self.best(first + others)

    def solver(self, scheduler: str, budget: int) -> list[Case]:
        """Return a solver with exactly so many steps, its timesteps placed as suits it best."""
        return self.best(
            [
                Case(
                    name=f"{SOLVER_NAMES[scheduler]}, {budget} steps",
                    group="solvers",
                    budget=budget,
                    plan=all_cloud(budget),
                    scheduler=scheduler,
                    spacing=spacing,
                )
                for spacing in (*SPACINGS, *([LOG_SNR] if scheduler in SOLVERS_WITHOUT_NOISE else []))
            ],
            converged=True,
        )

    def on_dpmpp(self, budget: int, step_counts: Sequence[int], spacing: str | None) -> list[Case]:
        """Return the best plan on DPM-Solver++ 2M with so many real steps: predictor, then their places."""
        found = [case for num_steps in step_counts for case in self._on_dpmpp(budget, num_steps, spacing)]
        return sorted(found, key=lambda case: case.chosen_converged_error or 0.0)[:1]

    def _on_dpmpp(self, budget: int, num_steps: int, spacing: str | None) -> list[Case]:
        even = crowded_steps(budget, num_steps, 1.0, last_real=False)
        if even is None:
            return []
        first = self.best([_on_dpmpp_case(even, num_steps, each, spacing) for each in PREDICTORS], converged=True)
        places = {
            crowded_steps(budget, num_steps, crowding, last_real=last_real)
            for crowding in CROWDINGS
            for last_real in (False, True)
        }
        others = sorted(each for each in places if each is not None and each != even)
        predictor = first[0].plan.predictor
        return self.best(
            first + [_on_dpmpp_case(each, num_steps, predictor, spacing) for each in others], converged=True
        )


SOLVER_NAMES = {"dpmpp-2m": "DPM-Solver++ 2M", "unipc": "UniPC", "ddim": "DDIM"}


def crowded_steps(budget: int, num_steps: int, crowding: float, *, last_real: bool) -> tuple[int, ...] | None:
    """Return `budget` real steps that begin with 0 and 1 and crowd towards one end; None where they collide.

    Args:
        budget: How many.
        num_steps: Of the plan.
        crowding: Exponent; above 1 the noisy end gets more.
        last_real: Whether the last step is real, or the last gap is as wide as those before it.
    """
    parts = budget - 1 if last_real else budget
    whole = num_steps - 1 if last_real else num_steps
    steps = [0, 1]
    for j in range(2, budget):
        steps.append(max(round(whole * (j / parts) ** crowding), steps[-1] + 1))
    return tuple(steps) if len(steps) == budget and steps[-1] < num_steps else None


def _on_dpmpp_case(steps: tuple[int, ...], num_steps: int, predictor: str, spacing: str | None) -> Case:
    return Case(
        name=f"ours {len(steps)} of {num_steps} DPM-Solver++ 2M, {predictor}",
        group="on-dpmpp",
        budget=len(steps),
        plan=Plan(
            num_inference_steps=num_steps,
            handoff_step=num_steps,
            refresh="listed",
            predictor=predictor,
            real_steps=steps,
        ),
        scheduler="dpmpp-2m",
        spacing=spacing,
    )


def _intervals(warmup_steps: int, handoff_step: int, budget: int) -> list[int]:
    """Return the shortest and the longest k with exactly so many calls."""
    fitting = [k for k in range(handoff_step) if len(fixed_steps(warmup_steps, k, handoff_step)) == budget]
    return sorted({fitting[0], fitting[-1]}) if fitting else []


def _ecdiff_case(budget: int, num_steps: int, p: int, k: int, a: float, s: int) -> Case:
    return Case(
        name=f"EC-Diff p{p} k{k} a{a:g} s{s}",
        group="ecdiff-searched",
        budget=budget,
        plan=Plan(
            num_inference_steps=num_steps,
            handoff_step=s,
            refresh="fixed",
            warmup_steps=p,
            skip_interval=k,
            predictor="ecdiff",
            smoothing=a,
        ),
    )
