"""What an edge and the orchestrator service say to each other, as frozen dataclasses; see `wire.messages`.

`wire.convert.fleet` turns them into protobuf and back. Replicas are cloud services, named by their `HOST:PORT`.
Fingerprints are hex digests of models, as `Describe` tells them. No prompt travels here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from wire.edge_plan import EdgePlan
from wire.messages import Load, ModelDescription, Plan
from wire.targets import Endpoint

PAPER = "paper"
"""The origin of a plan where a searched one was wanted and none fits."""
OUTCOMES = ("done", "fallback", "failed", "interrupted")
"""How a generation ends; `fallback` gave its picture, but not as it was asked for: on the edge alone, with
another cloud, too late; `fallbacks` of its report has the words."""
HANDOFF_STAGES = ("cloud_encode", "transit", "edge_decode", "edge_start", "total")
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Of the histograms of edges and of the fleet: quantiles compare only where the buckets are the same."""


@dataclass(frozen=True, kw_only=True)
class KnownCosts:
    """What an edge knows of what things take, for one generation's size and batch; None: it did not measure.

    The fields are those of `orchestrator.cost.Costs`.
    """

    latents_bytes: int
    rtt_seconds: float | None = None
    bandwidth_bytes_per_second: float | None = None
    cloud_step_seconds: float | None = None
    cloud_queue_seconds: float | None = None
    edge_step_seconds: float | None = None
    encode_prompt_seconds: float | None = None
    edge_encode_prompt_seconds: float | None = None
    decode_seconds: float | None = None
    shared_cores: bool = False


@dataclass(frozen=True, kw_only=True)
class PlanQuery:
    """Asks for the plan of one generation of mode adaptive.

    Attributes:
        cloud_fingerprint: Of the large model that will run it.
        edge_fingerprint: Of the small one.
        scheduler: Command-line name of the update rule.
        num_inference_steps: Steps of the whole trajectory.
        guidance_scale: Classifier-free guidance weight.
        latents_elements: Product of the latents' shape.
        costs: What the edge knows of what things take.
        deadline_seconds: From the prompt to the picture.
        tolerance: Error of the final latents that is allowed; None: the plan file's own.
        max_cloud_calls: Hard bound on evaluations in the cloud, corrections included.
        corrections: Instead of the plan's own, one of `wire.edge_plan.CORRECTIONS`.
        shadow: Whether the edge may evaluate its model beside the cloud.
        handoff_step: Exactly there.
        replica: The cloud service that will run it, as the edge knows it; empty: none that the orchestrator named.
    """

    cloud_fingerprint: str
    edge_fingerprint: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    latents_elements: int
    costs: KnownCosts
    deadline_seconds: float | None = None
    tolerance: float | None = None
    max_cloud_calls: int | None = None
    corrections: str | None = None
    shadow: bool = True
    handoff_step: int | None = None
    replica: str = ""


@dataclass(frozen=True, kw_only=True)
class LatencyEstimate:
    """What a plan is predicted to take; the parts add up to the total and are those of the report (docs/report.md).

    Attributes:
        handoff_step: Where the edge takes over, for a prompt of average disagreement.
        cloud_calls: Evaluations in the cloud up to there, and corrections after it.
        encode_prompt_seconds: What the edge waits for its own text encoder after everything else.
        cloud_queue_seconds: Waiting for the cloud's device.
        cloud_compute_seconds: The cloud's text encoder and its evaluations; of corrections, what the edge waits for.
        network_seconds: The way of Open, and what corrections take beyond that; where the edge runs no step, the way of
            the final latents too.
        handoff_seconds: From the cloud's last step that counts to the edge's first, the last shadow included.
        edge_compute_seconds: The small model, save in the shadow.
        decode_seconds: The decoder.
    """

    handoff_step: int
    cloud_calls: int
    encode_prompt_seconds: float = 0.0
    cloud_queue_seconds: float = 0.0
    cloud_compute_seconds: float = 0.0
    network_seconds: float = 0.0
    handoff_seconds: float = 0.0
    edge_compute_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """From the prompt to the picture, on a connection that is there."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """The parts by their names in the report."""
        names = [field.name for field in fields(self) if field.name.endswith("_seconds")]
        return {name.removesuffix("_seconds"): getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class PlanAnswer:
    """The plan of one generation, and why.

    Attributes:
        plan: The cloud's part.
        edge_plan: The edge's part.
        origin: Name of the plan file, or `PAPER`.
        why: One line on the choice among searched plans.
        lines: What the user did not ask for, one line each.
        expected_error: Of the final latents to all-cloud, as the search measured it; None where it did not.
        estimate: Predicted latency; None where too little is known.
        calibration: The factor in the estimate that was learned from session reports; 1 without an estimate.
    """

    plan: Plan
    edge_plan: EdgePlan
    origin: str
    why: str = ""
    lines: tuple[str, ...] = ()
    expected_error: float | None = None
    estimate: LatencyEstimate | None = None
    calibration: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One cloud service of the fleet, as the orchestrator last saw it.

    Attributes:
        address: `HOST:PORT`, from the orchestrator's own configuration or what a name of it stands for.
        is_up: It said SERVING when it was last asked.
        model: What it serves; None where it was never seen.
        load: When it was last asked.
        max_sessions: Of its limits.
        wait_seconds: What a generation is predicted to wait for its device and the way to it.
        step_seconds: One evaluation at the model's default size, as estimated; 0 where it is not known.
        rtt_seconds: Median of what edges reported.
        calibration: Measured over predicted latency, as learned.
        num_reports: How many session reports these estimates stand on.
        name: See `wire.targets.Endpoint`.
    """

    address: str
    is_up: bool
    model: ModelDescription | None = None
    load: Load = field(default_factory=Load)
    max_sessions: int = 0
    wait_seconds: float = 0.0
    step_seconds: float = 0.0
    rtt_seconds: float | None = None
    calibration: float = 1.0
    num_reports: int = 0
    name: str = ""

    @property
    def endpoint(self) -> Endpoint:
        """How it is connected to."""
        return Endpoint(address=self.address, name=self.name)


@dataclass(frozen=True, kw_only=True)
class SessionReport:
    """How one generation went.

    Attributes:
        mode: One of `orchestrator.plan.MODES`.
        outcome: One of `OUTCOMES`.
        replica: The cloud service that it ran on, as the edge knows it; empty: none.
        total_seconds: First contact to pictures.
        connect_seconds: Of these, what passed before the generation began.
        predicted_seconds: What was predicted for it, without connecting; None: nothing.
        calibration: The factor in that prediction, from `PlanAnswer`.
        nfe_cloud: Steps by the source of their prediction.
        nfe_extrapolated: Likewise.
        nfe_edge: Likewise.
        nfe_correction: Evaluations in the cloud after the handoff.
        handoff_seconds: By stage, of `HANDOFF_STAGES`.
        cloud_step_seconds: Mean of the cloud's real steps, what ran beside them on the same cores taken off.
        cloud_queue_seconds: Mean wait of a real step.
        rtt_seconds: Median round trip.
        bandwidth_bytes_per_second: Towards the edge.
        latents_elements: Product of the latents' shape.
    """

    mode: str
    outcome: str
    replica: str = ""
    total_seconds: float = 0.0
    connect_seconds: float = 0.0
    predicted_seconds: float | None = None
    calibration: float = 1.0
    nfe_cloud: int = 0
    nfe_extrapolated: int = 0
    nfe_edge: int = 0
    nfe_correction: int = 0
    handoff_seconds: Mapping[str, float] = field(default_factory=dict)
    cloud_step_seconds: float | None = None
    cloud_queue_seconds: float | None = None
    rtt_seconds: float | None = None
    bandwidth_bytes_per_second: float | None = None
    latents_elements: int = 0


@dataclass(frozen=True, kw_only=True)
class PlanFileStatus:
    """A file of the orchestrator's plans folder; with a `problem` it is not used, and the rest is empty."""

    name: str
    problem: str = ""
    cloud_fingerprint: str = ""
    edge_fingerprint: str = ""
    scheduler: str = ""
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    num_plans: int = 0


@dataclass(frozen=True, kw_only=True)
class FleetStatus:
    """What the orchestrator knows, for people."""

    version: str
    uptime_seconds: float
    replicas: tuple[Replica, ...] = ()
    plan_files: tuple[PlanFileStatus, ...] = ()
    num_plans_handed_out: int = 0
    num_reports: int = 0
