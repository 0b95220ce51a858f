"""How well latencies were predicted: of what was run, numbers in and numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.deadline.runs import VARIANTS, Run
from bench.intervals import quantile_interval
from bench.network import LINKS

BOUND_RATIO = 0.1


def results(runs: Sequence[Run], repeats: int, threads: int) -> dict[str, Any]:
    """Return what is written: the medians of each mode and link, and every run."""
    error_ratios = [run.error_ratio for run in runs]
    return {
        "repeats": repeats,
        "threads": threads,
        "bound_ratio": BOUND_RATIO,
        "median_error_ratio": statistics.median(error_ratios),
        "median_error_ratio_interval": quantile_interval(error_ratios, 0.5),
        "rows": [
            {"link": link, "variant": variant, **medians(found)} for (link, variant), found in grouped(runs).items()
        ],
        "runs": [asdict(run) for run in runs],
    }


def grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Return the runs of each link and variant, in the order in which both are named."""
    found: dict[tuple[str, str], list[Run]] = {}
    for variant in VARIANTS:
        for run in runs:
            if run.variant == variant.name:
                found.setdefault((run.link, run.variant), []).append(run)
    return {key: found[key] for link in LINKS for key in found if key[0] == link}


def medians(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the medians of one link and variant, and how many of its deadlines were met."""

    def median(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    deadlines = [run.deadline_seconds for run in runs if run.deadline_seconds is not None]
    return {
        "predicted_seconds": median("predicted_seconds"),
        "measured_seconds": median("measured_seconds"),
        "error_ratio": median("error_ratio"),
        "cloud_calls": median("cloud_calls"),
        "deadline_seconds": statistics.median(deadlines) if deadlines else None,
        "deadlines_met": sum(run.measured_seconds <= (run.deadline_seconds or 0.0) for run in runs),
        "num_runs": len(runs),
    }
