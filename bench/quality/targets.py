"""What was to be reached on the bundled pair, and whether it was.

A plan of this project is picked by its error on the search prompts, where it has one, and judged by that on the report
prompts; where the fewest calls are asked for, by the report prompts alone, as the targets say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.intervals import ratio_interval
from bench.quality.cases import PUBLISHED_CLOUD, PUBLISHED_HYBRID
from bench.quality.figures import Figures, by_prompt

OURS = ("searched", "on-dpmpp")
# What target 4 names, and one more that is at least as good.
RIVALS = {"dpmpp-2m": "4", "unipc": "4+"}
MIN_EDGE_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether one target was reached.

    Attributes:
        number: Of the target.
        target: What was asked.
        found: What there is.
        limit: What a pass needs at most.
        aim: What was hoped for, at most; None where nothing beyond the limit.
        value: What was reached; None where nothing did.
        tried: Whether there was anything to try.
        interval: 95 % interval of the value, where it has one.
    """

    number: str
    target: str
    found: str
    limit: float
    aim: float | None
    value: float | None
    tried: bool
    interval: tuple[float, float] | None = None

    @property
    def outcome(self) -> str:
        """One word for the table."""
        if self.value is None:
            return "fail" if self.tried else "not run"
        if self.aim is not None and self.value <= self.aim:
            return "aim reached"
        return "pass" if self.value <= self.limit else "fail"


def verdicts(lines: Sequence[Figures], prompts: Sequence[str]) -> list[Verdict]:
    """Return targets 1 to 4 for the lines of one run; `prompts` is one a row."""
    named = {line.name: line for line in lines}
    # The paper's places are for DDIM; another base is compared under target 4.
    ours = [line for line in lines if line.group == "searched"]
    found: list[Verdict] = []
    cloud_only = named.get(PUBLISHED_CLOUD)
    if cloud_only is not None:
        found.append(_error_verdict("1", ours, cloud_only, cloud_only.cloud_calls, (0.5, 0.25), prompts))
        found.append(_calls_verdict("2", ours, cloud_only, (15, 12)))
    hybrid = named.get(PUBLISHED_HYBRID)
    if hybrid is not None:
        with_edge = [line for line in ours if line.edge_steps >= MIN_EDGE_STEPS]
        found.append(_error_verdict("3a", with_edge, hybrid, 12, (0.4, 0.2), prompts))
        found.append(_calls_verdict("3b", with_edge, hybrid, (8, 5)))
    return found + solver_verdicts(lines, prompts)


def solver_verdicts(lines: Sequence[Figures], prompts: Sequence[str]) -> list[Verdict]:
    """Return target 4: for each budget of a multistep solver this project's best with no more calls, converged."""
    found = []
    for rival in [line for line in lines if line.group == "solvers" and line.scheduler.split()[0] in RIVALS]:
        number = RIVALS[rival.scheduler.split()[0]]
        allowed = [line for line in lines if line.group in OURS and line.cloud_calls <= rival.cloud_calls]
        target = f"{rival.cloud_calls:.0f} calls: converged error / {rival.name}'s ({rival.converged.mean:.4f})"
        if not allowed:
            found.append(Verdict(number=number, target=target, found="", limit=1.0, aim=None, value=None, tried=False))
            continue
        best = _best_by_base(allowed)
        winner = min(best.values(), key=lambda line: line.converged.mean)
        each = "; ".join(f"base {base}: {line.name} {line.converged.mean:.4f}" for base, line in best.items())
        found.append(
            Verdict(
                number=number,
                target=target,
                found=each,
                limit=1.0,
                aim=None,
                tried=True,
                value=winner.converged.mean / rival.converged.mean,
                interval=ratio_interval(
                    by_prompt(winner.converged_errors, prompts), by_prompt(rival.converged_errors, prompts)
                ),
            )
        )
    return found


def _best_by_base(lines: Sequence[Figures]) -> dict[str, Figures]:
    """Return, for each scheduler, the line of the least error: on search prompts to the same reference if known."""
    best: dict[str, Figures] = {}
    for base in dict.fromkeys(line.scheduler.split()[0] for line in lines):
        same = [line for line in lines if line.scheduler.split()[0] == base]
        chosen = [line for line in same if line.chosen_converged_error is not None]
        best[base] = (
            min(chosen, key=lambda line: line.chosen_converged_error or 0.0)
            if chosen
            else min(same, key=lambda line: line.chosen_error or 0.0)
        )
    return best


def _error_verdict(
    number: str,
    ours: Sequence[Figures],
    rival: Figures,
    max_calls: float,
    limits: tuple[float, float],
    prompts: Sequence[str],
) -> Verdict:
    allowed = [line for line in ours if line.cloud_calls <= max_calls and line.chosen_error is not None]
    best = min(allowed, key=lambda line: line.chosen_error or 0.0) if allowed else None
    edge = f" and at least {MIN_EDGE_STEPS} edge steps" if number == "3a" else ""
    return Verdict(
        number=number,
        target=f"at most {max_calls:.0f} calls{edge}: error / {rival.name}'s "
        f"({rival.fidelity.mean:.4f}, {rival.cloud_calls:.0f} calls)",
        found="" if best is None else f"{best.name}: {best.fidelity.mean:.4f}, {best.cloud_calls:.1f} calls",
        limit=limits[0],
        aim=limits[1],
        tried=bool(allowed),
        value=None if best is None else best.fidelity.mean / rival.fidelity.mean,
        interval=None
        if best is None
        else ratio_interval(by_prompt(best.errors, prompts), by_prompt(rival.errors, prompts)),
    )


def _calls_verdict(number: str, ours: Sequence[Figures], rival: Figures, limits: tuple[int, int]) -> Verdict:
    reached = [line for line in ours if line.fidelity.mean <= rival.fidelity.mean]
    best = min(reached, key=lambda line: (line.cloud_calls, line.fidelity.mean)) if reached else None
    edge = f" with at least {MIN_EDGE_STEPS} edge steps" if number == "3b" else ""
    error = f"{rival.fidelity.mean:.4f}, {rival.cloud_calls:.0f} calls"
    return Verdict(
        number=number,
        target=f"calls{edge} for at most {rival.name}'s error ({error})",
        found="" if best is None else f"{best.name}: {best.fidelity.mean:.4f}",
        limit=limits[0],
        aim=limits[1],
        tried=bool(ours),
        value=None if best is None else best.cloud_calls,
    )
