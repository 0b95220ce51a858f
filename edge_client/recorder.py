"""What one generation did and cost, recorded while it runs; `edge_client.report` makes the report of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from edge_client.ages import LatentsAges, made_at
from edge_client.request import GenerationRequest
from orchestrator.handoff import HandoffReason
from orchestrator.link import LinkEstimate
from wire.clock import stamp_seconds
from wire.messages import Array, Correction, HandedOff, Plan, Source, Step, Totals
from wire.tensors import CodecEvent

if TYPE_CHECKING:  # they know models, and the report is wanted by who only checks a file name
    from torch import Tensor

    from orchestrator.decision import Decision

SECONDS = (
    "total",
    "connect",
    "encode_picture",
    "encode_prompt",
    "cloud_queue",
    "cloud_compute",
    "network",
    "handoff",
    "edge_compute",
    "decode",
)


# In the place of a source: steps before the one that a picture starts at.
NOT_RUN = "-"


class Traffic(Protocol):
    """Something that counts serialized bytes in both directions."""

    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a generation stands, for a progress display.

    `step_sources` has one letter a step that is done: C, x or e, or - where it is left out. `first_step_at` is when the
    first one began, here or in the cloud, on `time.perf_counter`'s clock; None before that. `note` is a line for the
    user, and `preview` a PNG, each once.
    """

    phase: str
    num_inference_steps: int
    step_sources: str
    rtt_seconds: float
    bytes_received: int
    bytes_sent: int
    queue_position: int
    first_step_at: float | None = None
    note: str = ""
    preview: bytes = b""


@dataclass
class Recorder:
    """Collects one generation's facts; every duration is measured where it happens, in seconds."""

    request: GenerationRequest
    link: LinkEstimate
    on_progress: Callable[[Snapshot], None] | None = None
    decision: Decision | None = None
    on_latents: Callable[[int, Array | Tensor], None] | None = None
    decoded_by: str = "edge"
    phase: str = "connecting"
    queue_position: int = 0
    first_step_at: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))
    handoff_stages: dict[str, float] = field(default_factory=dict)
    handoff_reason: HandoffReason | None = None
    handoff_step: int | None = None
    fallbacks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    extrapolation_errors: list[float] = field(default_factory=list)
    rtt_seconds: list[float] = field(default_factory=list)
    transit_seconds: list[float] = field(default_factory=list)
    codec_events: list[CodecEvent] = field(default_factory=list)
    stream_link: LinkEstimate = field(default_factory=LinkEstimate)
    bytes_sent: int = 0
    bytes_received: int = 0
    num_corrections: int = 0
    correction_steps: list[int] = field(default_factory=list)
    correction_seconds: list[float] = field(default_factory=list)
    corrections_skipped: list[tuple[int, str]] = field(default_factory=list)
    disagreements: dict[int, float] = field(default_factory=dict)
    shadow_skipped: int = 0
    agreement_scale: float | None = None
    expected_error: float | None = None
    handoff_why: str = ""
    memory: dict[str, int | None] = field(default_factory=dict)
    clouds: list[str] = field(default_factory=list)
    moves: list[HandoffReason] = field(default_factory=list)
    ages: LatentsAges = field(default_factory=LatentsAges)
    cloud_steps: dict[int, Step] = field(default_factory=dict)
    num_redone: int = 0
    edge_steps: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._first_step = self._first_rtt = 0
        self._earlier = {"cloud_compute": 0.0, "cloud_queue": 0.0}
        self._earlier_bytes = (0, 0)

    def move(self, reason: HandoffReason, line: str) -> None:
        """Note that another cloud goes on: what was wrong with the last one, and the same for the user."""
        self.moves.append(reason)
        self.fall_back(line)

    def next_cloud(self, step_index: int) -> None:
        """Note that another session goes on before `step_index`: what the last one did beyond it is done again."""
        self._first_step, self._first_rtt = step_index, len(self.rtt_seconds)
        self._earlier = {name: self.seconds[name] for name in self._earlier}
        self._earlier_bytes = (self.bytes_sent, self.bytes_received)
        redone = [self.cloud_steps.pop(index) for index in sorted(self.cloud_steps) if index >= step_index]
        self.num_redone += sum(step.source is Source.CLOUD for step in redone)

    def traffic(self, stream: Traffic) -> None:
        """Take over what crossed the present stream so far."""
        sent, received = self._earlier_bytes
        self.bytes_sent, self.bytes_received = sent + stream.bytes_sent, received + stream.bytes_received

    def begin_steps(self, at: float) -> None:
        """Note when the first step began, on `time.perf_counter`'s clock; later ones are no news."""
        if self.first_step_at is None:
            self.first_step_at = at

    def cloud_step(self, step: Step, received_at: float) -> None:
        """Note a step of the cloud; `received_at` is this side's wall clock."""
        # It began before what it took, and its way here counts as waiting too.
        self.begin_steps(time.perf_counter() - step.compute_seconds)
        # Without its latents: a report must not keep a whole trajectory in memory.
        self.cloud_steps[step.step_index] = replace(step, latents=None, latents_before=None, prediction=None)
        if step.extrapolation_error is not None:
            self.extrapolation_errors.append(step.extrapolation_error)
        if step.latents is not None and self.link.num_probes:
            self.transit_seconds.append(self.link.one_way_seconds(step.sent_at, received_at))
        if step.latents is not None:
            self.ages.arrived(step.step_index + 1, step, self._clock_links)
        self.notify()

    def is_late(self, step: Step, bearable_seconds: float) -> bool:
        """Whether a step's latents are by now older than two round trips; what is `bearable_seconds` old never is.

        Before the first probe of the present cloud the pings of the first stream tell; without either nothing is late.
        """
        link = next((link for link in self._clock_links if link.num_probes), self.link)
        limit_seconds = max(2 * link.rtt_quantile_seconds(0.0), bearable_seconds)
        return link.num_probes > 0 and link.one_way_seconds(made_at(step), stamp_seconds()) > limit_seconds

    @property
    def _clock_links(self) -> tuple[LinkEstimate, ...]:
        """What tells the present cloud's clock: its probes, before the first of them the pings of the first stream."""
        return (self.link, self.stream_link) if len(self.clouds) <= 1 else (self.link,)

    def edge_step(self, step_index: int) -> None:
        """Note a step of the edge model."""
        self.edge_steps.add(step_index)
        self.notify()

    def shadowed(self, step_index: int, disagreement: float) -> None:
        """Note q at a real step that the edge model evaluated as well."""
        self.disagreements[step_index] = disagreement
        self.notify()

    def correction(self, message: Correction) -> None:
        """Note an evaluation of the cloud after the handoff, whether it still could be used or not."""
        self.num_corrections += 1
        self.seconds["cloud_compute"] += message.compute_seconds
        self.seconds["cloud_queue"] += message.queue_seconds

    def corrected(self, step_index: int, waited_seconds: float, under_way_seconds: float) -> None:
        """Note a step that ran on the cloud's answer.

        Args:
            step_index: Of the step.
            waited_seconds: For the answer, beyond the edge's own evaluation.
            under_way_seconds: There and back again, without the cloud's part.
        """
        self.correction_steps.append(step_index)
        self.correction_seconds.append(waited_seconds)
        self.ages.corrected(under_way_seconds)

    def hand_off(self, reason: HandoffReason, step_index: int) -> None:
        """Note that the edge model takes over before `step_index`."""
        self.handoff_reason, self.handoff_step = reason, step_index

    def fall_back(self, line: str) -> None:
        """Note something the user did not ask for, and show it."""
        self.fallbacks.append(line)
        self.notify(note=line)

    def warn(self, line: str) -> None:
        """Note something worth knowing, and show it."""
        self.warnings.append(line)
        self.notify(note=line)

    def enter(self, phase: str) -> None:
        """Change the phase that the progress display names."""
        self.phase = phase
        self.notify()

    def handoff_latency(self, message: HandedOff, received_at: float, decode_seconds: float) -> None:
        """Note the stages of the handoff that are over when its latents are decoded."""
        transit = self.link.one_way_seconds(message.sent_at, received_at) if self.link.num_probes else 0.0
        self.handoff_stages = {
            "cloud_encode": message.wait_seconds + message.encode_seconds,
            "transit": transit,
            "edge_decode": decode_seconds,
        }
        self.ages.arrived(message.state.step_index, message, self._clock_links)

    def cloud_totals(self, totals: Totals) -> None:
        """Take over the present cloud's own account of its time."""
        self._set_cloud_seconds(totals.compute_seconds, totals.queue_seconds)

    def cloud_totals_from_steps(self) -> None:
        """The same from the step headers, for a cloud that can no longer say."""
        steps = self.present_cloud_steps
        self._set_cloud_seconds(sum(step.compute_seconds for step in steps), sum(step.queue_seconds for step in steps))

    def _set_cloud_seconds(self, compute_seconds: float, queue_seconds: float) -> None:
        self.seconds["cloud_compute"] = self._earlier["cloud_compute"] + compute_seconds
        self.seconds["cloud_queue"] = self._earlier["cloud_queue"] + queue_seconds

    @property
    def present_cloud_steps(self) -> list[Step]:
        """The steps of the present cloud: those of one that was lost say nothing of it."""
        return [step for index, step in self.cloud_steps.items() if index >= self._first_step]

    @property
    def present_rtt_seconds(self) -> list[float]:
        """The round trips to the present cloud."""
        return self.rtt_seconds[self._first_rtt :]

    @property
    def cloud_seconds(self) -> float:
        """What the present cloud computed and waited for."""
        return sum(self.seconds[name] - earlier for name, earlier in self._earlier.items())

    @property
    def plan(self) -> Plan:
        """What the cloud was told, or is going to be."""
        return self.request.plan if self.decision is None else self.decision.plan

    @property
    def start_step(self) -> int:
        """First step of the trajectory."""
        return self.request.plan_options.start_step

    @property
    def step_sources(self) -> str:
        """One letter a step that counts, in order, after a dash for each one before a picture's first."""
        stop = self.handoff_step if self.handoff_step is not None else math.inf
        letters = {index: step.source.letter for index, step in self.cloud_steps.items() if index < stop}
        letters.update(dict.fromkeys(self.edge_steps, Source.EDGE.letter))
        return NOT_RUN * self.start_step + "".join(letters[index] for index in sorted(letters))

    @property
    def nfe(self) -> dict[str, int]:
        """Steps by source; `cloud` includes the discarded ones."""
        stop = self.handoff_step if self.handoff_step is not None else math.inf
        cloud = [index for index, step in self.cloud_steps.items() if step.source is Source.CLOUD]
        return {
            "cloud": len(cloud) + self.num_redone,
            "cloud_discarded": sum(index >= stop for index in cloud) + self.num_redone,
            "extrapolated": self.step_sources.count(Source.EXTRAPOLATED.letter),
            "edge": len(self.edge_steps),
            "corrections": self.num_corrections,
        }

    def saw_latents(self, step_index: int, latents: Array | Tensor) -> None:
        """Pass x at a step, scheduler scaling, to the preview, if there is one."""
        if self.on_latents is not None:
            self.on_latents(step_index, latents)

    def notify(self, note: str = "", preview: bytes = b"") -> None:
        """Tell the progress display."""
        if self.on_progress is None:
            return
        self.on_progress(
            Snapshot(
                phase=self.phase,
                num_inference_steps=self.plan.num_inference_steps,
                step_sources=self.step_sources,
                rtt_seconds=self.link.rtt_quantile_seconds(0.5),
                bytes_received=self.bytes_received,
                bytes_sent=self.bytes_sent,
                queue_position=self.queue_position,
                first_step_at=self.first_step_at,
                note=note,
                preview=preview,
            )
        )
