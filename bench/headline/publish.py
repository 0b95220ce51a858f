"""Tables, JSON and plot of what was run, all of it or the part that an interrupt left."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from bench.headline import show
from bench.headline.claims import Claim, claims
from bench.headline.figures import SAME_LATENTS, Quality, Times, largest_difference, quality, times
from bench.headline.runs import Ask, Run, Work
from bench.machine import write_results
from bench.network import LINKS

PUBLISHED_PROMPTS, PUBLISHED_SEEDS, PUBLISHED_REPEATS = 64, 2, 10
SCORER = "share of pictures that the bundled scorer (models/scorer.py) names right, among all captions of their style"

Scorer = Callable[[NDArray[np.uint8], Sequence[str]], list[bool]]
"""Says of pictures `[N, H, W, 3]` and what was asked for whether it names each right."""


@dataclass
class Runs:
    """What was run so far.

    Attributes:
        made: Pictures on loopback, by variant and ask.
        timed: Timed runs by link, in the order in which they were run.
    """

    made: dict[tuple[str, Ask], Run] = field(default_factory=dict)
    timed: dict[str, list[Run]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the runs say.

    Attributes:
        asks: Pictures that every variant has made, from the first one on.
        qualities: One a variant; none without such a picture.
        timings: One a variant and link, from the turns that every variant has had there.
        claims: None unless everything was run.
        apart: Relative L2 between latents over a link and those on loopback, at most.
        complete: Whether everything was run.
    """

    asks: tuple[Ask, ...]
    qualities: tuple[Quality, ...]
    timings: tuple[Times, ...]
    claims: tuple[Claim, ...]
    apart: float
    complete: bool


def find(work: Work, runs: Runs, scorer: Scorer | None) -> Findings:
    """Return what the runs say."""
    names = [each.name for each in work.variants]
    asks = tuple(itertools.takewhile(lambda ask: all((name, ask) in runs.made for name in names), work.asks))
    qualities = _qualities(names, asks, runs, scorer) if asks else ()
    timings = tuple(each for link in work.links for each in _timings(link, names, runs.timed.get(link, [])))
    timed = list(itertools.chain.from_iterable(runs.timed.values()))
    complete = asks == work.asks and len(timed) == work.repeats * len(names) * len(work.links)
    return Findings(
        asks=asks,
        qualities=qualities,
        timings=timings,
        claims=tuple(claims(qualities, timings, [ask.prompt for ask in asks])) if complete else (),
        apart=largest_difference(timed, runs.made),
        complete=complete,
    )


def publish(work: Work, runs: Runs, findings: Findings, *, scored: bool, output: Path) -> None:
    """Print and write the findings; an incomplete run goes to files of its own, and draws no plot."""
    what = _what(work, findings)
    if findings.qualities:
        show.print_quality(findings.qualities, what, SCORER if scored else "the scorer was not asked")
        _print_plans(work, runs, findings.asks)
    if findings.timings:
        turns = len(findings.timings[0].wall_seconds)
        show.print_times(
            findings.timings, f"{turns} runs a mode and link, in turns; {torch.get_num_threads()} thread(s) a process"
        )
    path = write_results(
        "headline" if findings.complete else "headline-partial", _results(work, findings, what), output
    )
    written = f"wrote {path}"
    if findings.complete:
        click.echo(f"Latents over the links are those on loopback: {findings.apart:.1e} apart at most.")
        show.print_claims(findings.claims)
        show.draw(findings.qualities, findings.timings, what, path.with_suffix(".png"))
        written += f" and {path.with_suffix('.png')}"
    click.echo(written)


def _results(work: Work, findings: Findings, what: str) -> dict[str, Any]:
    return {
        "what": what,
        "complete": findings.complete,
        "settings": {
            "num_prompts": len({ask.prompt for ask in findings.asks}),
            "num_pictures": len(findings.asks),
            "repeats": work.repeats,
            "num_inference_steps": work.num_steps,
            "threads_a_process": torch.get_num_threads(),
            "links": {name: str(LINKS[name]) for name in work.links},
        },
        "latents_between_links": {"largest_difference": findings.apart, "allowed": SAME_LATENTS},
        "quality": [asdict(each) for each in findings.qualities],
        "times": [asdict(each) for each in findings.timings],
        "claims": [asdict(each) | {"holds": each.holds} for each in findings.claims],
    }


def _qualities(names: Sequence[str], asks: Sequence[Ask], runs: Runs, scorer: Scorer | None) -> tuple[Quality, ...]:
    prompts = [ask.prompt for ask in asks]
    made = {name: [runs.made[name, ask] for ask in asks] for name in names}
    return tuple(
        quality(own, made["cloud"], [] if scorer is None else scorer(np.stack([run.picture for run in own]), prompts))
        for own in made.values()
    )


def _timings(link: str, names: Sequence[str], timed: Sequence[Run]) -> list[Times]:
    turns = len(timed) // len(names)
    by_name = {name: [run for run in timed if run.variant == name][:turns] for name in names}
    return [times(link, own, by_name["cloud"]) for own in by_name.values()] if turns else []


def _what(work: Work, findings: Findings) -> str:
    num_prompts = len({ask.prompt for ask in work.asks})
    num_seeds = len(work.asks) // num_prompts
    what = f"{len(findings.asks)} pictures ({num_prompts} report prompts, {num_seeds} of each), DDIM {work.num_steps}"
    asked = (num_prompts, num_seeds, work.repeats)
    published = (PUBLISHED_PROMPTS, PUBLISHED_SEEDS, PUBLISHED_REPEATS)
    if any(few < many for few, many in zip(asked, published, strict=True)):
        what += "; smaller than a published run"
    return what


def _print_plans(work: Work, runs: Runs, asks: Sequence[Ask]) -> None:
    """Print what was run in mode adaptive, and everything that nobody asked for."""
    for variant in work.variants:
        reports = [runs.made[variant.name, ask].report for ask in asks]
        if variant.mode == "adaptive":
            plan = reports[0]["plan"]
            click.echo(f"{variant.name}: {plan['origin']}{': ' if plan['why'] else ''}{plan['why']}")
        for line, count in Counter(line for report in reports for line in report["fallbacks"]).most_common():
            click.echo(f"{variant.name}, {count} of {len(reports)} pictures: {line}")
