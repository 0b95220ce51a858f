"""The edge leads: its own steps, and the cloud's corrections between them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

import torch

from diffusion.edge_lead import EdgeLead
from diffusion.tensors import from_array, to_array
from diffusion.trajectory import StepResult, Trajectory
from edge_client.clock import Clock
from edge_client.cloud_lead import CloudLead
from edge_client.edge_model import EdgeModel
from edge_client.recorder import Recorder
from orchestrator.corrections import Granted
from wire.errors import ModelError
from wire.messages import Array, Correction


class Finish:
    """Runs a trajectory to its end on the edge model.

    A correction's round trip overlaps the edge's own evaluation at the same latents, which the residual wants anyway
    and which the step falls back on if no answer comes.

    Args:
        edge: The small model.
        lead: Has seen what the shadow saw.
        trajectory: Where the edge takes over.
        recorder: Told of everything.
        cloud: Whom to ask for corrections; None: nobody.
        corrections: When to ask; its budget knows of the cloud's steps that the recorder does.
        clock: The time left.
    """

    def __init__(
        self,
        edge: EdgeModel,
        lead: EdgeLead,
        trajectory: Trajectory,
        recorder: Recorder,
        *,
        cloud: CloudLead | None,
        corrections: Granted,
        clock: Clock,
    ) -> None:
        self._edge = edge
        self._lead = lead
        self._trajectory = trajectory
        self._recorder = recorder
        self._cloud = cloud
        self._corrections = corrections
        self._clock = clock
        self._num_cloud_calls = recorder.nfe["cloud"]

    async def run(self) -> None:
        """Run every remaining step.

        Raises:
            ModelError: The edge model's answer is not finite.
        """
        if self._cloud is None:
            self._corrections.refuse_all()
        started = time.perf_counter()
        self._recorder.begin_steps(started)
        self._lead.take_over(self._trajectory)
        try:
            while await self._edge.run_to_call(self._lead, self._corrections.wants_call, self._note):
                await self._correct(self._trajectory.step_index)
        except ArithmeticError as error:
            raise ModelError(f"{error}: try another --dtype or --edge-model") from error
        self._recorder.corrections_skipped = self._corrections.skipped
        waited = sum(self._recorder.correction_seconds)
        self._recorder.seconds["edge_compute"] = time.perf_counter() - started - waited

    def _note(self, result: StepResult) -> None:
        self._recorder.saw_latents(result.step_index + 1, result.latents)
        self._recorder.edge_step(result.step_index)

    async def _correct(self, step_index: int) -> None:
        """Ask the cloud at the next step, and run it."""
        assert self._cloud is not None
        latents = await self._edge.run(to_array, self._trajectory.latents)
        asked = time.perf_counter()
        asking = asyncio.create_task(self._ask(self._cloud, step_index, latents))
        try:
            await self._edge.run(self._lead.think)
            thought = time.perf_counter()
            answer = await asking
        finally:
            asking.cancel()
        answered = time.perf_counter()
        prediction = None if answer is None else from_array(answer.prediction)
        result = await self._edge.run(self._advance, prediction)
        if answer is None:
            self._note_unanswered(self._cloud, step_index)
        else:
            self._take(answer, step_index, asked_seconds=answered - asked, waited_seconds=answered - thought)
        self._note(result)

    async def _ask(self, cloud: CloudLead, step_index: int, latents: Array) -> Correction | None:
        seconds = self._clock.seconds_to_spare(step_index)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(seconds) else max(0.0, seconds)):
                if await self._within_budget(cloud):
                    return await cloud.ask(step_index, latents)
        return None

    async def _within_budget(self, cloud: CloudLead) -> bool:
        """Whether the call may still be made; steps that the cloud made before it heard of the handoff count."""
        if math.isinf(self._corrections.calls_left):
            return True
        await cloud.stopped()
        made = self._recorder.nfe["cloud"]
        self._corrections.calls_left -= made - self._num_cloud_calls
        self._num_cloud_calls = made
        return self._corrections.calls_left >= 0

    def _advance(self, prediction: torch.Tensor | None) -> StepResult:
        return self._lead.advance(None if prediction is None else prediction.to(self._trajectory.latents.device))

    def _take(self, answer: Correction, step_index: int, *, asked_seconds: float, waited_seconds: float) -> None:
        self._corrections.corrected(step_index)
        in_cloud = answer.compute_seconds + answer.queue_seconds
        self._corrections.price.cloud_step_seconds = in_cloud
        self._corrections.price.rtt_seconds = max(0.0, asked_seconds - in_cloud)
        self._recorder.corrected(step_index, waited_seconds, self._corrections.price.rtt_seconds)
        self._recorder.seconds["network"] += max(0.0, waited_seconds - in_cloud)

    def _note_unanswered(self, cloud: CloudLead, step_index: int) -> None:
        if cloud.gone is None:
            reason = "max_cloud_calls" if self._corrections.calls_left < 0 else "late"
            self._corrections.skipped.append((step_index, reason))
            return
        self._corrections.refuse_all()
        self._corrections.skipped.append((step_index, "cloud_lost"))
        self._recorder.fall_back(
            f"the cloud was lost after the handoff ({cloud.gone}): the edge finishes without corrections"
        )
