"""What the paper promises, and whether it holds here.

EC-Diff (arXiv 2507.11980): up to twice as fast as the cloud model, and clearly better than the edge model. Here it is
the floor, for every link and with the whole 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.headline.figures import Estimate, Quality, Times, difference

JUDGED_MODES = ("ecdiff", "adaptive")
DEFAULT = "adaptive"
"""The variant that has to keep them all."""

MIN_TIMES_FASTER = 2.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing that is promised of one variant.

    Attributes:
        variant: Its name.
        what: What is compared with what.
        found: What it is.
        limit: What the whole interval has to be at or above.
        strict: Whether it has to be above.
    """

    variant: str
    what: str
    found: Estimate
    limit: float
    strict: bool = False

    @property
    def holds(self) -> bool:
        """Whether the whole interval is on the right side."""
        return self.found.low > self.limit if self.strict else self.found.low >= self.limit


def claims(qualities: Sequence[Quality], timings: Sequence[Times], prompts: Sequence[str]) -> list[Claim]:
    """Return every claim of the variants that are judged, the links in the order of the timings.

    Args:
        qualities: One a variant; that of edge among them.
        timings: One a variant and link.
        prompts: One a picture of the qualities.
    """
    edge = next(each for each in qualities if each.variant == "edge")
    found = []
    for each in qualities:
        if each.variant.split(",")[0] not in JUDGED_MODES:
            continue
        found += [
            Claim(
                variant=each.variant,
                what=f"times faster than cloud, {timing.link}",
                found=timing.faster,
                limit=MIN_TIMES_FASTER,
            )
            for timing in timings
            if timing.variant == each.variant
        ]
        found.append(
            Claim(
                variant=each.variant,
                what="error below edge's",
                found=difference(edge.errors, each.errors, prompts),
                limit=0.0,
                strict=True,
            )
        )
        if each.hits:
            found.append(
                Claim(
                    variant=each.variant,
                    what="top-1 above edge's, points",
                    found=_points(difference(each.hits, edge.hits, prompts)),
                    limit=0.0,
                    strict=True,
                )
            )
    return found


def _points(share: Estimate) -> Estimate:
    return Estimate(value=100 * share.value, low=100 * share.low, high=100 * share.high)
