"""Times, calls, errors and accuracy of what was run, each with a 95 % interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.headline.runs import Ask, Run
from bench.intervals import mean_interval, quantile_interval, ratio_interval, share_interval
from bench.quality.figures import by_prompt
from edge_client.report import Report

PARTS = (
    "encode_prompt",
    "cloud_queue",
    "cloud_compute",
    "network",
    "handoff",
    "edge_compute",
    "decode",
    "rest",
)
"""Of the wall time: those of `seconds` in the report, and what is left."""

SAME_LATENTS = 1e-4
"""Relative L2 up to which two runs made the same latents."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What one variant gives, whatever the link.

    Attributes:
        variant: Its name.
        num_pictures: Pictures that it rests on.
        cloud_calls: Evaluations of the large model a picture, corrections and discarded ones included.
        discarded: Those that the cloud made past the handoff, before it heard of it.
        edge_steps: Steps a picture on the small model's own prediction.
        handoff_steps: First and last step at which the edge took over; None where it never did.
        error: Relative L2 of the final latents to `cloud`; None for `cloud` itself.
        top1: Share of pictures that the scorer names right; None without the scorer.
        errors: Of every picture.
        hits: Whether the scorer names it, of every picture; empty without the scorer.
    """

    variant: str
    num_pictures: int
    cloud_calls: Estimate
    discarded: float
    edge_steps: float
    handoff_steps: tuple[int, int] | None
    error: Estimate | None
    top1: Estimate | None
    errors: tuple[float, ...]
    hits: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one variant takes on one link.

    Attributes:
        link: Its name.
        variant: Its name.
        wall_p50: Seconds from the call to the picture, median.
        wall_p95: Likewise, 95 of 100.
        faster: Mean wall time of `cloud` over that of the variant, from runs in pairs.
        cloud_seconds: Seconds of the cloud's device a picture.
        parts: Mean seconds of each of `PARTS`; they add up to the mean wall time.
        wall_seconds: Of every run.
    """

    link: str
    variant: str
    wall_p50: Estimate
    wall_p95: Estimate
    faster: Estimate
    cloud_seconds: Estimate
    parts: dict[str, float]
    wall_seconds: tuple[float, ...]


def quality(runs: Sequence[Run], reference: Sequence[Run], hits: Sequence[bool]) -> Quality:
    """Return the figures of one variant.

    Args:
        runs: Its runs, one an ask.
        reference: Those of mode cloud, in the same order.
        hits: Whether the scorer names each picture; empty without the scorer.
    """
    prompts = [run.ask.prompt for run in runs]
    errors = [relative_error(run.latents, wanted.latents) for run, wanted in zip(runs, reference, strict=True)]
    steps = [run.report["handoff"]["step"] for run in runs if run.report["handoff"] is not None]
    return Quality(
        variant=runs[0].variant,
        num_pictures=len(runs),
        cloud_calls=_mean([cloud_calls(run.report) for run in runs], prompts),
        discarded=statistics.mean(run.report["nfe"]["cloud_discarded"] for run in runs),
        edge_steps=statistics.mean(run.report["nfe"]["edge"] - len(run.report["corrections"]["steps"]) for run in runs),
        handoff_steps=(min(steps), max(steps)) if steps else None,
        error=_mean(errors, prompts) if any(errors) else None,
        top1=_share(sum(hits), len(hits)) if hits else None,
        errors=tuple(errors),
        hits=tuple(hits),
    )


def times(link: str, runs: Sequence[Run], reference: Sequence[Run]) -> Times:
    """Return the figures of one variant on one link; `reference` is mode cloud, the same asks in the same order."""
    walls = [run.wall_seconds for run in runs]
    cloud_walls = [run.wall_seconds for run in reference]
    parts = [split(run.report, run.wall_seconds) for run in runs]
    return Times(
        link=link,
        variant=runs[0].variant,
        wall_p50=_quantile(walls, 0.5),
        wall_p95=_quantile(walls, 0.95),
        faster=ratio(cloud_walls, walls),
        cloud_seconds=_mean([run.report["seconds"]["cloud_compute"] for run in runs]),
        parts={name: statistics.mean(part[name] for part in parts) for name in PARTS},
        wall_seconds=tuple(walls),
    )


def cloud_calls(report: Report) -> int:
    """Return how often the large model was asked, corrections and discarded steps included."""
    return int(report["nfe"]["cloud"] + report["nfe"]["corrections"])


def relative_error(latents: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return |x - wanted| / |wanted|, L2."""
    exact = wanted.astype(np.float64)
    return float(np.linalg.norm(latents - exact) / np.linalg.norm(exact))


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Return the ratio of two means; the values come in pairs."""
    low, high = ratio_interval(above, below)
    return Estimate(value=statistics.mean(above) / statistics.mean(below), low=low, high=high)


def difference(above: Sequence[float], below: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Return the mean difference of values in pairs, one a picture of `prompts`."""
    return _mean([float(a) - float(b) for a, b in zip(above, below, strict=True)], prompts)


def split(report: Report, wall_seconds: float) -> dict[str, float]:
    """Return the seconds of each of `PARTS`, which add up to the wall time.

    The edge's text encoder counts in mode edge alone: elsewhere it runs while the cloud works. Of the cloud's compute
    time counts what the edge waited for: it evaluates its own model during a correction, and goes on while steps that
    are discarded end. The rest is what no part names, such as the end of the stream and the threads' hops.
    """
    seconds = {name: float(report["seconds"][name]) for name in PARTS[:-1]}
    if report["mode"] != "edge":
        seconds["encode_prompt"] = 0.0
    rest = wall_seconds - sum(seconds.values())
    seconds["cloud_compute"] += min(rest, 0.0)
    return seconds | {"rest": max(rest, 0.0)}


def largest_difference(timed: Sequence[Run], made: Mapping[tuple[str, Ask], Run]) -> float:
    """Return how far the latents of runs over links are from those made on loopback, relative L2, at most.

    Args:
        timed: The runs over links.
        made: Those on loopback, by variant and ask; runs that it lacks are left out.
    """
    pairs = [(run, made[run.variant, run.ask]) for run in timed if (run.variant, run.ask) in made]
    return max((relative_error(run.latents, same.latents) for run, same in pairs), default=0.0)


def _mean(values: Sequence[float], prompts: Sequence[str] | None = None) -> Estimate:
    independent = list(values) if prompts is None else by_prompt(values, prompts)
    low, high = mean_interval(independent)
    return Estimate(value=statistics.mean(independent), low=low, high=high)


def _share(successes: int, trials: int) -> Estimate:
    low, high = share_interval(successes, trials)
    return Estimate(value=successes / trials, low=low, high=high)


def _quantile(values: Sequence[float], quantile: float) -> Estimate:
    low, high = quantile_interval(values, quantile)
    return Estimate(value=float(np.quantile(values, quantile)), low=low, high=high)
