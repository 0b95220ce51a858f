"""Errors, intervals and accuracy of what was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.intervals import mean_interval, share_interval
from bench.quality.cases import Case
from bench.quality.runner import Made
from models.captions import plain_caption
from models.data import load_icons
from models.scorer import Judge, load_scorer

SOLVERS_WITHOUT_NOISE = ("dpmpp-2m", "unipc")
"""Schedulers that end at no noise at all; DDIM may end at the pair's lowest noise level (`set_alpha_to_one` off)."""


@dataclass(frozen=True, kw_only=True)
class Error:
    """A mean over prompts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One line of the table.

    Attributes:
        name: The case's, as are the next two.
        group: See `Case`.
        budget: See `Case`.
        scheduler: Update rule and step count, with the spacing where it is not the pair's own.
        cloud_calls: Mean over rows.
        edge_steps: Mean over rows.
        handoff_steps: Least and most over rows.
        fidelity: Relative L2 to all-cloud with the pair's own scheduler and step count.
        converged: Relative L2 to all-cloud with many more steps.
        psnr_db: Decoded pictures against the all-cloud ones, from their pooled squared error; None for itself.
        top1: Share of pictures that the scorer gives their own caption; None without the scorer.
        top1_interval: 95 % interval (Wilson).
        cloud_seconds_share: Of the large model's seconds in all-cloud, in batches of the same size.
        errors: Relative L2 to all-cloud of every row.
        converged_errors: To the converged reference.
        chosen_error: See `Case`.
        chosen_converged_error: See `Case`.
    """

    name: str
    group: str
    budget: int | None
    scheduler: str
    cloud_calls: float
    edge_steps: float
    handoff_steps: tuple[int, int]
    fidelity: Error
    converged: Error
    psnr_db: float | None
    top1: float | None
    top1_interval: tuple[float, float] | None
    cloud_seconds_share: float
    errors: tuple[float, ...]
    converged_errors: tuple[float, ...]
    chosen_error: float | None = None
    chosen_converged_error: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values; errors with five digits."""
        plain = asdict(self)
        for name in ("errors", "converged_errors"):
            plain[name] = [float(f"{value:.5g}") for value in plain[name]]
        return plain


def relative_errors(case: Case, made: Made, reference: Made) -> NDArray[np.float64]:
    """Return |x - reference| / |reference| (L2) of each row.

    Both are taken at the noise level at which the case's scheduler ends.
    """
    clean = case.scheduler in SOLVERS_WITHOUT_NOISE
    found, wanted = (each.denoised if clean else each.latents for each in (made, reference))
    flat = (len(wanted), -1)
    distance = np.linalg.norm((found.astype(np.float64) - wanted).reshape(flat), axis=1)
    errors: NDArray[np.float64] = distance / np.linalg.norm(wanted.astype(np.float64).reshape(flat), axis=1)
    return errors


def by_prompt(values: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """Return the mean of each prompt's rows: seeds of one prompt are not independent."""
    return [
        float(np.mean([v for v, p in zip(values, prompts, strict=True) if p == prompt]))
        for prompt in dict.fromkeys(prompts)
    ]


def error_of(values: Sequence[float], prompts: Sequence[str]) -> Error:
    """Return mean and interval over prompts."""
    means = by_prompt(values, prompts)
    low, high = mean_interval(means)
    return Error(mean=float(np.mean(means)), low=low, high=high)


def psnr_db(pictures: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float | None:
    """Return the peak signal-to-noise ratio of `[N, H, W, 3]` over all pictures; None where they are the same."""
    squared_error = np.mean((pictures.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(255.0**2 / squared_error)) if squared_error else None


class Accuracy:
    """Asks the bundled scorer which caption of the style a picture shows.

    Args:
        scorer_dir: The trained scorer.
        cache_dir: Where the icons are, whose captions are the choice; fetched the first time.
    """

    def __init__(self, scorer_dir: Path, cache_dir: Path) -> None:
        icons = load_icons(cache_dir=cache_dir)
        self._judge = Judge(*load_scorer(scorer_dir), icons)
        self._rows = {plain_caption(icons, row): row for row in range(len(icons))}

    def right(self, pictures: NDArray[np.uint8], prompts: Sequence[str]) -> list[bool]:
        """Return whether the scorer gives each picture its own caption.

        Args:
            pictures: `[N, H, W, 3]`.
            prompts: The captions that were asked for.

        Raises:
            ValueError: If one is no caption of an icon.
        """
        unknown = [prompt for prompt in prompts if prompt not in self._rows]
        if unknown:
            raise ValueError(f"the scorer knows no picture of {unknown[0]!r}")
        rows = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        ranks, _ = self._judge.best(rows, [self._rows[prompt] for prompt in prompts])
        return [rank == 0 for rank in ranks]


def figures(
    case: Case,
    made: Made,
    *,
    prompts: Sequence[str],
    reference: Made,
    converged: Made,
    pictures: NDArray[np.uint8],
    reference_pictures: NDArray[np.uint8],
    accuracy: Accuracy | None,
    full_seconds: float,
) -> Figures:
    """Return a case's line.

    Args:
        case: What was run.
        made: What it made.
        prompts: One a row.
        reference: What all-cloud made.
        converged: What it made with many more steps.
        pictures: `made`, decoded.
        reference_pictures: `reference`, decoded.
        accuracy: The scorer, if there is one.
        full_seconds: What all-cloud takes of the large model for these rows, in batches of the same size.
    """
    errors = relative_errors(case, made, reference).tolist()
    converged_errors = relative_errors(case, made, converged).tolist()
    hits = None if accuracy is None else sum(accuracy.right(pictures, prompts))
    own_spacing = "" if case.spacing is None else f", {case.spacing}"
    return Figures(
        name=case.name,
        group=case.group,
        budget=case.budget,
        scheduler=f"{case.scheduler} {case.plan.num_inference_steps}{own_spacing}",
        cloud_calls=float(made.cloud_calls.mean()),
        edge_steps=float(made.edge_steps.mean()),
        handoff_steps=(int(made.handoff_steps.min()), int(made.handoff_steps.max())),
        fidelity=error_of(errors, prompts),
        converged=error_of(converged_errors, prompts),
        psnr_db=psnr_db(pictures, reference_pictures),
        top1=None if hits is None else hits / len(pictures),
        top1_interval=None if hits is None else share_interval(hits, len(pictures)),
        cloud_seconds_share=made.cloud_seconds / full_seconds,
        errors=tuple(errors),
        converged_errors=tuple(converged_errors),
        chosen_error=case.chosen_error,
        chosen_converged_error=case.chosen_converged_error,
    )
