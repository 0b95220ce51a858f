"""The shadow: while the cloud leads, the edge evaluates its own model where the cloud evaluated."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import torch

from diffusion.edge_lead import EdgeLead
from diffusion.schedulers import Stepper
from diffusion.tensors import from_array, to_array
from edge_client.edge_model import EdgeModel
from edge_client.recorder import Recorder
from orchestrator.handoff import AgreementHandoff
from orchestrator.windows import MAX_WAITING_STEPS
from wire.messages import State, Step


class Shadow:
    """Evaluates the edge model at the real steps of the stream, in order, behind the stream's back.

    It keeps at most `MAX_WAITING_STEPS` waiting: an edge that is slower than the cloud skips the oldest, and it skips
    those that are old already when their turn comes; the report says how many. What it decides depends on the steps
    that it has seen, never on when it saw them.

    Args:
        edge: The small model.
        make_lead: Returns the generation's `EdgeLead`, once the prompt is encoded.
        agreement: Decides the handoff from what is measured; None: nothing is decided here.
        recorder: Told of every measurement.
        is_late: Whether a step is too old to decide by.
    """

    def __init__(
        self,
        edge: EdgeModel,
        make_lead: Callable[[], Awaitable[EdgeLead]],
        agreement: AgreementHandoff | None,
        recorder: Recorder,
        *,
        is_late: Callable[[Step], bool],
    ) -> None:
        self._edge = edge
        self._make_lead = make_lead
        self._agreement = agreement
        self._recorder = recorder
        self._is_late = is_late
        self._waiting: deque[Step] = deque()
        self._decided = False
        self._handoff_step: int | None = None
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def offer(self, step: Step) -> None:
        """Take a real step with its prediction; the oldest gives way where too many wait.

        One without, for which there was no credit, is skipped.
        """
        if self._decided:
            return
        if step.prediction is None or step.latents_before is None:
            self._recorder.shadow_skipped += 1
            return
        if len(self._waiting) == MAX_WAITING_STEPS:
            self._waiting.popleft()
            self._recorder.shadow_skipped += 1
        self._waiting.append(step)
        self._idle.clear()
        self._wake.set()

    async def run(self, announce: Callable[[int], None]) -> State:
        """Shadow until the handoff by agreement; return the state that the edge takes over from.

        Args:
            announce: Told the handoff step one real step ahead.

        Raises:
            asyncio.CancelledError: The cloud's part ended without agreement.
        """
        while True:
            await self._wake.wait()
            lead = await self._make_lead()
            while self._waiting:
                step = self._waiting.popleft()
                if self._is_late(step):
                    # Where it is the very step before the handoff, the cloud's own handoff brings what is wanted.
                    self._recorder.shadow_skipped += 1
                    continue
                await self._observe(lead, step)
                if step.step_index + 1 == self._handoff_step:
                    self._decided = True
                    return await self._edge.run(_state_after, lead, step)
                if self._agreement is not None and self._handoff_step is None:
                    self._handoff_step = self._agreement.handoff_after(step.step_index)
                    if self._handoff_step is not None:
                        announce(self._handoff_step)
            self._wake.clear()
            self._idle.set()

    async def settle(self) -> None:
        """Wait until nothing is waiting."""
        await self._idle.wait()

    async def _observe(self, lead: EdgeLead, step: Step) -> None:
        assert step.prediction is not None
        assert step.latents_before is not None
        cloud, latents = from_array(step.prediction), from_array(step.latents_before)
        measured = await self._edge.run(_shadow, lead, step.step_index, cloud, latents)
        disagreement = sum(measured) / len(measured)
        self._recorder.shadowed(step.step_index, disagreement)
        if self._agreement is not None:
            self._recorder.ages.decided("agreement", step.step_index + 1)
            self._agreement.observe(step.step_index, disagreement)


def _shadow(lead: EdgeLead, step_index: int, cloud: torch.Tensor, latents: torch.Tensor) -> list[float]:
    device = lead.stepper.device
    return lead.shadow(step_index, cloud.to(device), latents.to(device))


def _state_after(lead: EdgeLead, step: Step) -> State:
    """Return the state after a real step, with the history that the step leaves a multistep solver."""
    assert step.latents is not None
    assert step.latents_before is not None
    assert step.prediction is not None
    device = lead.stepper.device
    # Of its own: the cloud may hand off meanwhile, and its history goes into the other one.
    stepper = Stepper(lead.stepper.class_name, lead.stepper.config, lead.stepper.schedule.num_steps, device)
    stepper.load_state({}, step_index=step.step_index)
    with torch.inference_mode():
        stepper.step(
            from_array(step.prediction).to(device), step.step_index, from_array(step.latents_before).to(device)
        )
    history = {name: to_array(tensor) for name, tensor in stepper.state().items()}
    return State(step_index=step.step_index + 1, latents=step.latents, scheduler_state=history)
