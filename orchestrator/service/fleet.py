"""The replicas: who is up and how busy, what edges saw of them, and in which order an edge should try them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.cost import Costs
from orchestrator.service.estimates import ReplicaEstimates
from wire.convert.checks import MAX_SECONDS
from wire.fleet_messages import KnownCosts, Replica, SessionReport
from wire.messages import Description, Load
from wire.targets import Endpoint

WAITED_STEPS = 10
"""A generation waits for the device about so often: the searched plans make 6 to 13 calls."""


@dataclass
class ReplicaState:
    """One replica as it was last seen.

    Attributes:
        is_up: It said SERVING.
        description: What it said of itself, the last time that it did.
        problem: Why it is down, in words; empty while it is up.
        assigned: How often it was named first since it last told its load, at most as often as it has places.
    """

    is_up: bool = False
    description: Description | None = None
    problem: str = "not asked yet"
    assigned: int = 0

    @property
    def load(self) -> Load:
        """How busy it is: one that is down has nothing to do."""
        return self.description.load if self.is_up and self.description is not None else Load()

    @property
    def max_sessions(self) -> int:
        """How many sessions may run there; 0 where nothing is known."""
        return 0 if self.description is None else self.description.limits.max_sessions

    @property
    def default_elements(self) -> int:
        """Elements of one picture's latents at the model's default size; 0 where nothing is known."""
        if self.description is None:
            return 0
        model = self.description.model
        height, width = model.default_height // model.vae_scale_factor, model.default_width // model.vae_scale_factor
        return model.latent_channels * height * width

    @property
    def told_step_per_element(self) -> float:
        """What it says of its step, for each element of the latents; 0 where it says nothing."""
        if self.description is None or not self.default_elements:
            return 0.0
        return self.description.load.step_seconds / self.default_elements


class Fleet:
    """Keeps replicas and their estimates.

    Args:
        estimates: What was known of some of them before, by `HOST:PORT`.
    """

    def __init__(self, estimates: dict[str, ReplicaEstimates] | None = None) -> None:
        self.states: dict[str, ReplicaState] = {}
        self.estimates: dict[str, ReplicaEstimates] = {}
        self._names: dict[str, str] = {}
        # Of addresses that are no replica's now, but may be again.
        self._earlier = estimates or {}

    def become(self, endpoints: Iterable[Endpoint], *, are_all: bool = True) -> None:
        """Take these for the replicas from now on; what was learned of others is forgotten.

        Args:
            endpoints: Where they are.
            are_all: Whether every name among the targets had an answer; else what was learned of others is kept, since
                a name that has one again may stand for them.
        """
        self._names = {each.address: each.name for each in endpoints}
        self.states = {address: self.states.get(address, ReplicaState()) for address in self._names}
        known = self._earlier | self.estimates
        self.estimates = {address: known.pop(address, ReplicaEstimates()) for address in self._names}
        self._earlier = {} if self._names and are_all else known

    @property
    def remembered(self) -> dict[str, ReplicaEstimates]:
        """What a restart needs: what is known of the replicas, and of those that may come back."""
        return self._earlier | self.estimates

    def saw(self, address: str, description: Description) -> None:
        """Note a replica that serves; with another model than before what was learned of it is void."""
        self.states[address] = ReplicaState(is_up=True, description=description, problem="")
        fingerprint = description.model.fingerprint
        if self.estimates[address].fingerprint != fingerprint:
            self.estimates[address] = ReplicaEstimates(fingerprint)

    def lost(self, address: str, problem: str) -> None:
        """Note a replica that does not serve."""
        before = self.states[address]
        self.states[address] = ReplicaState(is_up=False, description=before.description, problem=problem)

    def learn(self, report: SessionReport, now_seconds: float) -> None:
        """Take in a session report; one of another cloud teaches nothing about these."""
        state = self.states.get(report.replica)
        if state is not None:
            self.estimates[report.replica].learn(report, now_seconds, told_step_per_element=state.told_step_per_element)

    def calibration(self, address: str, now_seconds: float) -> float:
        """Return the factor by which latencies on a replica turn out longer than predicted."""
        estimates = self.estimates.get(address)
        return 1.0 if estimates is None else estimates.calibration(now_seconds)

    def costs(self, known: KnownCosts, address: str, elements: int, now_seconds: float) -> Costs | None:
        """Return what an edge knows, completed with what is known of the replica; None where something is missing."""
        step, queue, rtt = known.cloud_step_seconds, known.cloud_queue_seconds, known.rtt_seconds
        bandwidth = known.bandwidth_bytes_per_second
        if address in self.states:
            estimates, state = self.estimates[address], self.states[address]
            if step is None:
                step = self._step_seconds(address, elements, now_seconds)
            if queue is None and step is not None:
                queue = estimates.queue_seconds(now_seconds, told_seconds=state.load.queue * step)
            rtt = estimates.rtt_seconds(now_seconds) if rtt is None else rtt
            bandwidth = estimates.bandwidth_bytes_per_second(now_seconds) if bandwidth is None else bandwidth
        edge_encode, decode = known.edge_encode_prompt_seconds, known.decode_seconds
        # A pair nearly always shares its text encoder, and it is quick.
        encode = edge_encode if known.encode_prompt_seconds is None else known.encode_prompt_seconds
        edge_step = known.edge_step_seconds
        if (
            step is None
            or queue is None
            or rtt is None
            or edge_step is None
            or encode is None
            or edge_encode is None
            or decode is None
        ):
            return None
        return Costs(
            rtt_seconds=rtt,
            bandwidth_bytes_per_second=bandwidth,
            latents_bytes=known.latents_bytes,
            cloud_step_seconds=step,
            cloud_queue_seconds=queue,
            edge_step_seconds=edge_step,
            encode_prompt_seconds=encode,
            edge_encode_prompt_seconds=edge_encode,
            decode_seconds=decode,
            shared_cores=known.shared_cores,
        )

    def in_order(self, now_seconds: float, is_pair: Callable[[str], bool]) -> list[Replica]:
        """Return every replica, the one to try first in front, and count that it was named.

        Those that serve come first, of them those that have a place, of them those whose pair with the asking edge has
        a searched plan, then by the least predicted wait.

        Args:
            now_seconds: The time.
            is_pair: Whether plans were searched for a cloud model's fingerprint and the asking edge.
        """

        def order(each: Replica) -> tuple[bool, bool, bool, float]:
            is_full = bool(each.max_sessions) and self._sessions(each.address) >= each.max_sessions
            return (
                not each.is_up,
                is_full,
                each.model is None or not is_pair(each.model.fingerprint),
                each.wait_seconds,
            )

        ordered = sorted((self.replica(address, now_seconds) for address in self.states), key=order)
        if ordered:
            first = self.states[ordered[0].address]
            # Whoever asks without end fills its places, no more: it is asked for its load again before long.
            first.assigned = min(first.assigned + 1, first.max_sessions)
        return ordered

    def replica(self, address: str, now_seconds: float) -> Replica:
        """Return what is known of one; what it or edges said of it stays within what an edge reads.

        One replica that says something odd must not cost edges the whole list.
        """
        state, estimates = self.states[address], self.estimates[address]
        description = state.description
        step_seconds = min(self._step_seconds(address, state.default_elements, now_seconds) or 0.0, MAX_SECONDS)
        rtt_seconds = estimates.rtt_seconds(now_seconds)
        told = (state.load.queue + state.assigned) * step_seconds
        queue_seconds = max(told, estimates.queue_seconds(now_seconds, told_seconds=told))
        wait_seconds = WAITED_STEPS * (queue_seconds + step_seconds) + (rtt_seconds or 0.0)
        return Replica(
            address=address,
            is_up=state.is_up,
            model=None if description is None else description.model,
            load=state.load,
            max_sessions=state.max_sessions,
            wait_seconds=min(wait_seconds, MAX_SECONDS),
            step_seconds=step_seconds,
            rtt_seconds=rtt_seconds,
            calibration=estimates.calibration(now_seconds),
            num_reports=estimates.num_reports,
            name=self._names[address],
        )

    def _step_seconds(self, address: str, elements: int, now_seconds: float) -> float | None:
        told = self.states[address].told_step_per_element
        return self.estimates[address].step_seconds(elements, now_seconds, told_step_per_element=told)

    def _sessions(self, address: str) -> int:
        state = self.states[address]
        return state.load.sessions + state.assigned
