"""The agent itself: one client, one queue, and what it does between generations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

from edge_client.agent.config import LOGGER_NAME
from edge_client.agent.convert import is_gauge
from edge_client.agent.idle import Idle
from edge_client.agent.metrics import AgentMetrics
from edge_client.agent.settings import Settings
from edge_client.agent.turns import Ticket, Turns
from edge_client.agent.updates import Updates
from edge_client.client import EdgeClient
from edge_client.generation import GenerationResult
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from edge_client.series import Observation
from edge_client.videos import encode_pixels
from protos import edge_agent_v1_pb2 as pb
from wire.errors import NotServing

_log = logging.getLogger(LOGGER_NAME)
# So often a running generation's numbers reach the metrics: well within the time from one scrape to the next.
CATCH_UP_SECONDS = 1.0
LOADING, SERVING, DRAINING = "loading", "serving", "draining"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a generation gave, and what it had to say to the metrics.

    Attributes:
        result: Pictures, latents, report.
        pngs: The pictures with the report in them.
        observations: Of this generation alone.
        queue_seconds: From arrival to its turn.
        start_seconds: From its turn to the start of its first step.
    """

    result: GenerationResult
    pngs: list[bytes]
    observations: list[Observation]
    queue_seconds: float
    start_seconds: float


class Agent:
    """Keeps a client's models loaded and lets generations take turns.

    Args:
        client: Not loaded yet; the agent closes it.
        settings: What it was made from.
        max_queue: Most generations that wait.
        log_prompts: Whether prompts are in the log.
    """

    def __init__(self, client: EdgeClient, settings: Settings, *, max_queue: int, log_prompts: bool = False) -> None:
        self.metrics = AgentMetrics(client.metrics.registry)
        self.address = ""
        self._client = client
        self._settings = settings
        self._max_queue = max_queue
        self._log_prompts = log_prompts
        self._turns = Turns(max_waiting=max_queue, on_change=self.metrics.queue.set)
        self._idle = Idle(client)
        self._running: set[asyncio.Task[Made]] = set()
        self._state = LOADING

    async def load(self) -> str:
        """Load the models and take requests from now on; return the edge model's name.

        A cloud elsewhere may be away; a cloud service of the agent's own is one of its models.

        Raises:
            ValueError: A model cannot be used here.
            OSError: It cannot be loaded.
            EcdiffError: The cloud service of its own says why it cannot run.
        """
        info = await self._client.load()
        if self._settings.cloud_model is not None:
            await self._client.reach_cloud()
        if self._state == LOADING:  # it may have been told to end meanwhile
            self._state = SERVING
            self._idle.begin()
        return info.name

    def start(self, request: GenerationRequest, updates: Updates) -> asyncio.Task[Made]:
        """Queue a generation; cancelling the task cancels it.

        Raises:
            NotServing: The agent is not up yet, or going down.
        """
        if self._state != SERVING:
            raise NotServing(f"the agent is {self._state}")
        task = asyncio.create_task(self._generate(request, updates))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: updates.close())
        # Whoever asked may be gone: then nobody looks at how it ended.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _generate(self, request: GenerationRequest, updates: Updates) -> Made:
        ticket = Ticket(request=request, on_place=updates.place, arrived_at=time.perf_counter())
        async with self._turns.turn(ticket):
            began = time.perf_counter()
            self.metrics.queue_seconds.observe(began - ticket.arrived_at)
            catching_up = asyncio.create_task(self._catch_up())
            outcome = "interrupted"
            try:
                await self._idle.end()
                result, start_seconds = await self._run(ticket, began, updates)
                outcome = "fallback" if result.report["fallbacks"] else "done"
                observations = self._client.metrics.latest
            except Exception as error:
                outcome = type(error).__name__
                raise
            finally:
                catching_up.cancel()
                if self._state == SERVING:
                    self._idle.begin()
                _log.info("generation ended", extra=self._for_the_log(request, outcome))
        # The next one need not wait for it.
        result.report["agent"] = self.address
        return Made(
            result=result,
            pngs=await asyncio.to_thread(encode_pixels, result.pixels, result.report),
            observations=observations,
            queue_seconds=began - ticket.arrived_at,
            start_seconds=start_seconds,
        )

    def _for_the_log(self, request: GenerationRequest, outcome: str) -> dict[str, str]:
        facts = {"request_id": request.request_id, "outcome": outcome}
        if self._log_prompts:
            facts |= {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        return facts

    async def _run(self, ticket: Ticket, began: float, updates: Updates) -> tuple[GenerationResult, float]:
        """Return what was made, and how long after `began` its first step began."""
        start_seconds = 0.0

        def progress(snapshot: Snapshot) -> None:
            nonlocal start_seconds
            if not start_seconds and snapshot.first_step_at is not None:
                start_seconds = max(0.0, snapshot.first_step_at - began)
                self.metrics.start_seconds.observe(start_seconds)
            ticket.snapshot = snapshot
            updates.progress(snapshot)

        result = await self._client.run(ticket.request, progress)
        return result, start_seconds

    async def _catch_up(self) -> None:
        while True:
            await asyncio.sleep(CATCH_UP_SECONDS)
            self._client.metrics.catch_up()

    def record(self, observations: Iterable[Observation]) -> None:
        """Count what a generation in a process of its own observed.

        A gauge says how things stand with the cloud of that process, which need not be the agent's: it is left out.
        """
        self._client.metrics.observe(each for each in observations if not is_gauge(each))

    def status(self, *, want_prompts: bool) -> pb.AgentStatus:
        """Return what is served, how far away the cloud is, who waits."""
        now = time.perf_counter()
        status = pb.AgentStatus(
            version=version("ecdiff"),
            state=self._state,
            settings=self._settings.encode(),
            cloud=self._cloud_status(),
            max_queue=self._max_queue,
            generations=[_generation_status(ticket, now, want_prompts) for ticket in self._turns.line],
        )
        if self._client.edge is not None:
            info = self._client.edge.model.info
            edge_model = pb.EdgeModelStatus(name=info.name, device=info.device, dtype=info.dtype)
            edge_model.guidance_scale = info.default_guidance_scale
            edge_model.step_seconds = self._client.edge.step_seconds.seconds
            status.edge_model.CopyFrom(edge_model)
        return status

    def _cloud_status(self) -> pb.CloudStatus:
        link = self._client.link
        if link is None:
            return pb.CloudStatus(problem=self._idle.problem)
        model, estimate = link.description.model, link.estimate
        status = pb.CloudStatus(address=link.address, model=model.name, device=model.device, dtype=model.dtype)
        if estimate.num_probes:
            status.rtt_seconds = estimate.rtt_quantile_seconds(0.5)
            status.clock_offset_seconds = estimate.clock_offset_seconds
            status.clock_offset_uncertainty_seconds = estimate.clock_offset_uncertainty_seconds
        return status

    async def drain(self, grace_seconds: float) -> None:
        """Take no new requests, let the running and the waiting ones finish within the grace period, and let go."""
        _log.info("draining", extra={"generations": len(self._turns.line)})
        self._state = DRAINING
        await self._idle.end()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Let go of the models and the cloud."""
        await self._client.close()


def _generation_status(ticket: Ticket, now: float, want_prompt: bool) -> pb.GenerationStatus:
    request, snapshot = ticket.request, ticket.snapshot
    return pb.GenerationStatus(
        request_id=request.request_id,
        mode=request.mode,
        phase="waiting" if snapshot is None else snapshot.phase,
        seconds=now - ticket.arrived_at,
        num_steps_done=0 if snapshot is None else len(snapshot.step_sources),
        num_inference_steps=request.plan_options.num_inference_steps,
        prompt=request.prompt if want_prompt else "",
    )
