"""What one generation has to say to the edge's series, as plain numbers: they can be counted here or elsewhere."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from edge_client.recorder import Recorder
from edge_client.series import Observation
from orchestrator.link import LinkEstimate

T = TypeVar("T")


def clock_observations(link: LinkEstimate) -> list[Observation]:
    """Return the clock offset and its uncertainty; nothing before the first probe."""
    if not math.isfinite(link.clock_offset_uncertainty_seconds):
        return []
    return [
        Observation(series="ecdiff_clock_offset_seconds", values=(link.clock_offset_seconds,)),
        Observation(series="ecdiff_clock_offset_uncertainty_seconds", values=(link.clock_offset_uncertainty_seconds,)),
    ]


def rtt_observations(probe: str, rtts: Sequence[float]) -> list[Observation]:
    """Return round trips of `probe`: channel or stream."""
    if not rtts:
        return []
    return [Observation(series="ecdiff_network_rtt_seconds", values=tuple(rtts), labels={"probe": probe})]


class Harvest:
    """Each observation of one generation once: while it runs what is certain by then, the rest at its end.

    Args:
        recorder: Of the generation.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._taken: dict[str, int] = defaultdict(int)

    def so_far(self) -> list[Observation]:
        """Return what is new and will not change any more."""
        recorder = self._recorder
        nfe = recorder.nfe
        found = self._new_evaluations(cloud=nfe["cloud"], edge=nfe["edge"], correction=nfe["corrections"])
        for series, values in (
            ("ecdiff_extrapolation_error", recorder.extrapolation_errors),
            ("ecdiff_latents_transit_seconds", recorder.transit_seconds),
        ):
            if new := self._new(series, values):
                found.append(Observation(series=series, values=tuple(new)))
        found += [
            Observation(series="ecdiff_cloud_moves_total", values=(1.0,), labels={"reason": reason.value})
            for reason in self._new("moves", recorder.moves)
        ]
        found += self._new_tensors()
        found += rtt_observations("stream", recorder.stream_link.take_new_rtts())
        return found + clock_observations(recorder.link)

    def ending(self, outcome: str) -> list[Observation]:
        """Return the rest of a generation that is over.

        Args:
            outcome: One of `OUTCOMES`; what failed or was interrupted gave no pictures.
        """
        recorder, mode = self._recorder, self._recorder.request.mode
        found = self.so_far()
        found.append(
            Observation(series="ecdiff_generations_total", values=(1.0,), labels={"mode": mode, "outcome": outcome})
        )
        if outcome not in ("done", "fallback"):
            return found
        seconds = (recorder.seconds["total"],)
        found.append(Observation(series="ecdiff_generation_seconds", values=seconds, labels={"mode": mode}))
        # A step of the cloud past the handoff is none: only now it is known which those are.
        found += self._new_evaluations(extrapolated=recorder.nfe["extrapolated"])
        found += rtt_observations("channel", recorder.rtt_seconds)
        return found + self._handoff()

    def _handoff(self) -> list[Observation]:
        recorder = self._recorder
        if recorder.handoff_reason is None or recorder.handoff_step is None:
            return []
        reason = {"reason": recorder.handoff_reason.value}
        return [
            Observation(series="ecdiff_handoffs_total", values=(1.0,), labels=reason),
            Observation(series="ecdiff_handoff_step", values=(float(recorder.handoff_step),)),
            *(
                Observation(series="ecdiff_handoff_seconds", values=(value,), labels={"stage": stage})
                for stage, value in recorder.handoff_stages.items()
            ),
        ]

    def _new_evaluations(self, **counts: int) -> list[Observation]:
        found = []
        for source, count in counts.items():
            if new := count - self._taken[source]:
                self._taken[source] = count
                labels = {"source": source}
                found.append(Observation(series="ecdiff_nfe_total", values=(float(new),), labels=labels))
        return found

    def _new_tensors(self) -> list[Observation]:
        sizes: dict[tuple[str, str, str], int] = defaultdict(int)
        seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in self._new("tensors", self._recorder.codec_events):
            direction, codec = "sent" if event.operation == "encode" else "received", event.codec.label
            sizes[direction, codec, "raw"] += event.raw_bytes
            sizes[direction, codec, "wire"] += event.wire_bytes
            seconds[event.operation, codec].append(event.seconds)
        found = [
            Observation(
                series="ecdiff_latents_bytes_total",
                values=(float(size),),
                labels={"direction": direction, "codec": codec, "kind": kind},
            )
            for (direction, codec, kind), size in sizes.items()
        ]
        return found + [
            Observation(
                series="ecdiff_codec_seconds",
                values=tuple(values),
                labels={"operation": operation, "codec": codec},
            )
            for (operation, codec), values in seconds.items()
        ]

    def _new(self, name: str, items: Sequence[T]) -> Sequence[T]:
        start, self._taken[name] = self._taken[name], len(items)
        return items[start:]
