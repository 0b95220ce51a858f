"""How old the cloud's latents are when the edge decides from them."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.link import LinkEstimate
from wire.clock import stamp_seconds
from wire.messages import HandedOff, Step

# What the edge decides from latents that the cloud has made.
DECISIONS = ("agreement", "handoff")


@dataclass(frozen=True, kw_only=True)
class _Made:
    """When latents were made, by the clock of the cloud that `links` lead to; the best estimate of it first."""

    at: float
    links: tuple[LinkEstimate, ...]


@dataclass(frozen=True, kw_only=True)
class _Decided:
    """A decision, and when it was made by this side's clock."""

    decision: str
    made: _Made
    at: float


class LatentsAges:
    """The ages of one generation, whatever clouds it was at: each has a clock of its own."""

    def __init__(self) -> None:
        self._made: dict[int, _Made] = {}
        self._decided: list[_Decided] = []
        self._corrections: list[float] = []

    def arrived(self, step_index: int, message: Step | HandedOff, links: tuple[LinkEstimate, ...]) -> None:
        """Note when the cloud had made the latents at `step_index`; the first of `links` with a probe counts."""
        self._made[step_index] = _Made(at=made_at(message), links=links)

    def decided(self, decision: str, step_index: int) -> None:
        """Note one of `DECISIONS`, made now from the cloud's latents at `step_index`; the edge's own have no age."""
        if step_index in self._made:
            self._decided.append(_Decided(decision=decision, made=self._made[step_index], at=stamp_seconds()))

    def corrected(self, under_way_seconds: float) -> None:
        """Note a correction: there and back again, without the cloud's part."""
        self._corrections.append(under_way_seconds)

    @property
    def seconds(self) -> dict[str, list[float]]:
        """From when the cloud had made latents to each of the `DECISIONS` from them, and of corrections."""
        ages: dict[str, list[float]] = {name: [] for name in DECISIONS}
        for each in self._decided:
            for link in [link for link in each.made.links if link.num_probes][:1]:
                ages[each.decision].append(link.one_way_seconds(each.made.at, each.at))
        return ages | {"correction": self._corrections}


def made_at(message: Step | HandedOff) -> float:
    """Return when the cloud had made the latents in a message, by its clock."""
    return message.sent_at - message.encode_seconds - message.wait_seconds
