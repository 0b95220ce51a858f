"""What a plan costs in time, before it is run: numbers in, seconds out.

What overlaps decides. While the cloud leads, its steps follow each other whatever the link does: only the way of Open
and the way back of the last latents are waited for, and a stream on an open channel needs no round trip more. The
shadow runs beside the cloud; what remains of it at the handoff is its last evaluation. Of a correction the edge waits
for the longer of the round trip with the cloud's evaluation in it, and its own evaluation at the same latents.

Left out, because they are small: extrapolated steps (no network is run), codecs, message headers, a connection that has
to open its window again. Every duration grows with every cost, and never falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from orchestrator.corrections import CorrectionPrice, calls_left
from orchestrator.plan import step_sources
from orchestrator.windows import CREDIT_WINDOW, MAX_WAITING_STEPS, SHADOW_WINDOW
from wire.edge_plan import EdgePlan
from wire.fleet_messages import KnownCosts, LatencyEstimate
from wire.messages import Plan, Source

# What a shadowed step carries: latents before and after it, and the prediction.
_SHADOWED_TENSORS = 3


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What things take here and now, for one generation's size and batch.

    Attributes:
        rtt_seconds: Round trip on the path.
        bandwidth_bytes_per_second: Of each direction; None where nothing limits it.
        latents_bytes: One latents tensor on the wire.
        cloud_step_seconds: One evaluation of the large model.
        cloud_queue_seconds: What each of them waits for the device.
        edge_step_seconds: One evaluation of the small model.
        encode_prompt_seconds: The cloud's text encoder.
        edge_encode_prompt_seconds: The edge's own; it runs while the cloud works.
        decode_seconds: The decoder.
        shared_cores: Whether both models compute on the same cores: what overlaps then slows each other.
        start_step: First step of the trajectory; above 0 where it starts from a picture.

    Raises:
        ValueError: A cost that is negative, infinite or not a number, or a bandwidth of 0.
    """

    rtt_seconds: float
    bandwidth_bytes_per_second: float | None
    latents_bytes: int
    cloud_step_seconds: float
    cloud_queue_seconds: float
    edge_step_seconds: float
    encode_prompt_seconds: float
    edge_encode_prompt_seconds: float
    decode_seconds: float
    shared_cores: bool
    start_step: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be finite and not negative, not {value}")
        if self.bandwidth_bytes_per_second == 0:
            raise ValueError("bandwidth_bytes_per_second must be above 0, or None for no limit")

    def scaled(self, factor: float) -> Costs:
        """Return the costs with which every prediction is `factor` times as long."""
        seconds = {field.name for field in fields(self) if field.name.endswith("_seconds")}
        bandwidth = self.bandwidth_bytes_per_second
        return replace(
            self,
            **{name: factor * getattr(self, name) for name in seconds},
            bandwidth_bytes_per_second=None if bandwidth is None else bandwidth / factor,
        )

    @property
    def known(self) -> KnownCosts:
        """The same as an edge tells an orchestrator, whose plans start from noise."""
        return KnownCosts(**{field.name: getattr(self, field.name) for field in fields(KnownCosts)})

    @property
    def one_way_seconds(self) -> float:
        """Half the round trip."""
        return self.rtt_seconds / 2

    @property
    def transfer_seconds(self) -> float:
        """One latents tensor's time on the wire, beyond the way itself."""
        bandwidth = self.bandwidth_bytes_per_second
        return 0.0 if bandwidth is None else self.latents_bytes / bandwidth

    @property
    def correction_price(self) -> CorrectionPrice:
        """What `orchestrator.corrections` weighs a correction by."""
        arrives = self.one_way_seconds + self.transfer_seconds
        # On shared cores the cloud goes slower for as long as the edge's own evaluation still runs beside it.
        beside = _clip(self.edge_step_seconds - arrives, self.cloud_step_seconds) if self.shared_cores else 0.0
        return CorrectionPrice(
            rtt_seconds=2 * arrives,
            cloud_step_seconds=self.cloud_queue_seconds + self.cloud_step_seconds + beside,
            edge_step_seconds=self.edge_step_seconds,
            decode_seconds=self.decode_seconds,
        )


def predict_latency(plan: Plan, edge_plan: EdgePlan, costs: Costs) -> LatencyEstimate:
    """Predict what a generation takes, in whatever mode.

    What is decided at run time is taken as follows: a handoff by agreement comes where it does for a prompt of average
    disagreement; a refresh policy that adapts makes as many calls as it may; corrections by `disagreement` are none,
    since nothing but the prompt says how many there will be, and each is granted only where the deadline leaves room.

    Args:
        plan: The cloud's part. Where it is nothing and no correction may follow, no session is opened.
        edge_plan: The edge's part.
        costs: Of the pair, the machines and the link.
    """
    start_step = costs.start_step
    handoff_step = expected_handoff(plan, edge_plan, start_step=start_step)
    num_real = _num_real(plan, handoff_step, start_step)
    num_corrections = expected_corrections(plan, edge_plan, handoff_step, num_real)
    # A corrected step wants the small model's own evaluation too.
    tail = (plan.num_inference_steps - handoff_step) * costs.edge_step_seconds
    if not may_ask_cloud(plan, edge_plan, start_step=start_step):
        return LatencyEstimate(
            handoff_step=start_step,
            cloud_calls=0,
            encode_prompt_seconds=costs.edge_encode_prompt_seconds,
            edge_compute_seconds=tail,
            decode_seconds=costs.decode_seconds,
        )
    num_shadowed = num_real if edge_plan.shadow else 0
    compute = costs.encode_prompt_seconds + num_real * costs.cloud_step_seconds
    if costs.shared_cores:
        compute += _slowed_by_edge(costs, compute, max(0, num_shadowed - 1))
    queue = num_real * costs.cloud_queue_seconds
    there, back = costs.one_way_seconds, costs.one_way_seconds + _arrival_seconds(costs, num_real, num_shadowed)
    edge_leads = handoff_step < plan.num_inference_steps
    late_encoding = max(0.0, costs.edge_encode_prompt_seconds - (there + queue + compute + back))
    price = costs.correction_price
    waited = price.seconds - price.edge_step_seconds
    waited_in_cloud = min(waited, price.cloud_step_seconds)
    return LatencyEstimate(
        handoff_step=handoff_step,
        cloud_calls=num_real + num_corrections,
        encode_prompt_seconds=late_encoding if edge_leads else 0.0,
        cloud_queue_seconds=queue,
        cloud_compute_seconds=compute + num_corrections * waited_in_cloud,
        network_seconds=there + num_corrections * (waited - waited_in_cloud) + (0.0 if edge_leads else back),
        handoff_seconds=back if edge_leads else 0.0,
        edge_compute_seconds=tail,
        decode_seconds=costs.decode_seconds,
    )


def may_ask_cloud(plan: Plan, edge_plan: EdgePlan, *, start_step: int = 0) -> bool:
    """Return whether a generation may ask the cloud for anything, so that it needs a session."""
    return plan.handoff_step > start_step or (edge_plan.corrections != "none" and calls_left(edge_plan, 0) > 0)


def expected_handoff(plan: Plan, edge_plan: EdgePlan, *, start_step: int = 0) -> int:
    """Return the edge's first step for a prompt of average disagreement: agreement comes after a real step."""
    agreement = edge_plan.agreement
    if agreement is not None:
        sources = step_sources(plan, start_step=start_step)
        for step_index in range(start_step, plan.handoff_step - 1):
            source = sources[step_index]
            if source is not Source.EXTRAPOLATED and agreement.tail_error[step_index + 1] <= agreement.tolerance:
                return step_index + 1
    return max(plan.handoff_step, start_step)


def expected_corrections(plan: Plan, edge_plan: EdgePlan, handoff_step: int, num_real: int) -> int:
    """Return how many corrections follow the handoff, within what the bound on calls leaves of them."""
    match edge_plan.corrections:
        case "planned":
            wanted = sum(handoff_step <= step < plan.num_inference_steps for step in edge_plan.correction_steps)
        case "final":
            wanted = int(handoff_step < plan.num_inference_steps)
        case _:
            wanted = 0
    return int(min(wanted, max(0, calls_left(edge_plan, num_real))))


def _num_real(plan: Plan, handoff_step: int, start_step: int) -> int:
    """Return the evaluations in the cloud before a step, at most."""
    sources = step_sources(plan, start_step=start_step)[start_step:handoff_step]
    most = sum(source is not Source.EXTRAPOLATED for source in sources)
    return most if plan.max_cloud_calls is None else min(most, plan.max_cloud_calls)


def _slowed_by_edge(costs: Costs, compute_seconds: float, num_beside: int) -> float:
    """Return by how much the cloud is slower for what the edge computes on the same cores meanwhile.

    That is its text encoder, and the shadow of every step but the last: that has the cores for itself.
    """
    encoding = _clip(costs.edge_encode_prompt_seconds - costs.one_way_seconds, compute_seconds)
    return encoding + num_beside * min(costs.edge_step_seconds, costs.cloud_step_seconds)


def _arrival_seconds(costs: Costs, num_real: int, num_shadowed: int) -> float:
    """Return what passes from the cloud's last step until the edge can begin, beyond the way itself.

    Without a shadow: the latents, behind those of earlier steps that are still on the wire. With one: the tensors of
    the last real step, behind those before it that are under way wherever the wire is slower than the cloud; then the
    last evaluation. An edge slower than the cloud falls behind by the difference at each step, until it begins to skip
    some.
    """
    interval = costs.cloud_step_seconds + costs.cloud_queue_seconds
    if not num_shadowed:
        under_way = max(0.0, CREDIT_WINDOW * costs.transfer_seconds - interval) if num_real > 1 else 0.0
        return under_way + costs.transfer_seconds
    message = _SHADOWED_TENSORS * costs.transfer_seconds
    under_way = min((num_shadowed - 1) * max(0.0, message - interval), (SHADOW_WINDOW - 1) * message)
    behind = (num_shadowed - 1) * max(0.0, costs.edge_step_seconds - max(interval, message))
    evaluation = costs.edge_step_seconds + min(behind, MAX_WAITING_STEPS * costs.edge_step_seconds)
    return under_way + message + max(costs.transfer_seconds, evaluation)


def _clip(seconds: float, most: float) -> float:
    return min(max(0.0, seconds), most)
