"""Where the time goes, and how old latents are: of what was run, numbers in and numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.headline.figures import PARTS as WITHOUT_CONNECT
from bench.headline.figures import split
from bench.links.runs import Run, Stream
from bench.network import LINKS
from edge_client.report import Report
from orchestrator.link import nearest_rank

PARTS = ("connect", *WITHOUT_CONNECT)
"""Of the time to the picture, the first contact included: those of `seconds` in the report, and the rest."""

DECISIONS = ("agreement", "handoff", "correction")
BOUND_ROUND_TRIPS = 2.0
# 5 Mbit/s and 150 ms.
NARROW = "mobile"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the time of one variant goes on one link.

    Attributes:
        link: Its name.
        variant: Its name.
        total_seconds: Mean.
        faster: Mean total of `cloud` on this link over this one's.
        parts: Mean seconds of each of `PARTS`; they add up to the total.
        totals_seconds: Of every run.
    """

    link: str
    variant: str
    total_seconds: float
    faster: float
    parts: dict[str, float]
    totals_seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DecisionAge:
    """The oldest of the cloud's answers that drove a decision, over all runs of one kind.

    Attributes:
        link: Its name.
        variant: Its name.
        num_images: Pictures in a tensor.
        decision: One of `DECISIONS`.
        age_seconds: The oldest.
        rtt_seconds: Of the link.
        num_runs: Runs in which that was decided.
    """

    link: str
    variant: str
    num_images: int
    decision: str
    age_seconds: float
    rtt_seconds: float
    num_runs: int

    @property
    def round_trips(self) -> float:
        """The age in round trips."""
        return self.age_seconds / self.rtt_seconds


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How fresh latents of one size arrive on one link, with credits or without.

    Attributes:
        link: Its name.
        size: Name of the latents' size.
        with_credits: Whether a window of two gated them.
        num_latents: That came, in all sessions.
        age_p50_seconds: From the end of a step to its latents' arrival, median.
        age_max_seconds: The oldest.
        last_age_seconds: The same of the latents that a session ended with, median.
        ping_p50_seconds: Round trip within the stream, median.
        ping_max_seconds: The longest.
        rtt_seconds: Of the path, the least.
        step_seconds: A step of the cloud, mean.
    """

    link: str
    size: str
    with_credits: bool
    num_latents: int
    age_p50_seconds: float
    age_max_seconds: float
    last_age_seconds: float
    ping_p50_seconds: float
    ping_max_seconds: float
    rtt_seconds: float
    step_seconds: float


def splits(runs: Sequence[Run]) -> list[Split]:
    """Return a split for each link and variant of the runs with one picture a tensor, in the order of the runs."""
    groups = _grouped([run for run in runs if run.num_images == 1])
    found = []
    for (link, variant, _), group in groups.items():
        totals = [_total(run.report) for run in group]
        in_cloud = [_total(run.report) for run in groups[link, "cloud", 1]]
        parts = [parts_of(run.report) for run in group]
        found.append(
            Split(
                link=link,
                variant=variant,
                total_seconds=statistics.fmean(totals),
                faster=statistics.fmean(in_cloud) / statistics.fmean(totals),
                parts={name: statistics.fmean(part[name] for part in parts) for name in PARTS},
                totals_seconds=tuple(totals),
            )
        )
    return found


def parts_of(report: Report) -> dict[str, float]:
    """Return the seconds of each of `PARTS`, which add up to the total."""
    connect = float(report["seconds"]["connect"])
    return {"connect": connect} | split(report, _total(report) - connect)


def decision_ages(runs: Sequence[Run]) -> list[DecisionAge]:
    """Return the oldest of each decision that was made, for each link, variant and size."""
    found = []
    for (link, variant, num_images), group in _grouped(runs).items():
        rtt_seconds = 2 * LINKS[link].latency_seconds
        for decision in DECISIONS:
            ages = [run.report["network"]["latents_age_seconds"][decision] for run in group]
            if known := [age for age in ages if age is not None]:
                found.append(
                    DecisionAge(
                        link=link,
                        variant=variant,
                        num_images=num_images,
                        decision=decision,
                        age_seconds=max(known),
                        rtt_seconds=rtt_seconds,
                        num_runs=len(known),
                    )
                )
    return found


def freshness(streams: Sequence[Stream]) -> list[Freshness]:
    """Return a line for each size, link and kind of credit, in the order of the sessions."""
    groups: dict[tuple[str, str, bool], list[Stream]] = {}
    for stream in streams:
        groups.setdefault((stream.size, stream.link, stream.with_credits), []).append(stream)
    return [_freshness(group) for group in groups.values()]


def _freshness(group: Sequence[Stream]) -> Freshness:
    ages = [age for stream in group for age in stream.ages_seconds]
    pings = [ping for stream in group for ping in stream.ping_seconds]
    return Freshness(
        link=group[0].link,
        size=group[0].size,
        with_credits=group[0].with_credits,
        num_latents=len(ages),
        age_p50_seconds=nearest_rank(ages, 0.5),
        age_max_seconds=max(ages),
        last_age_seconds=statistics.median(stream.last_age_seconds for stream in group),
        ping_p50_seconds=nearest_rank(pings, 0.5),
        ping_max_seconds=max(pings),
        rtt_seconds=min(stream.rtt_seconds for stream in group),
        step_seconds=statistics.fmean(stream.step_seconds for stream in group),
    )


def too_old(ages: Sequence[DecisionAge], link: str) -> list[DecisionAge]:
    """Return what breaks the bar: decisions on `link` from what was older, with one picture a tensor."""
    judged = [age for age in ages if age.link == link and age.num_images == 1]
    return [age for age in judged if age.round_trips > BOUND_ROUND_TRIPS]


def _total(report: Report) -> float:
    return float(report["seconds"]["total"])


def _grouped(runs: Sequence[Run]) -> dict[tuple[str, str, int], list[Run]]:
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.link, run.variant, run.num_images), []).append(run)
    return groups
