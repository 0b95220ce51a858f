"""The device's half of a session: one trajectory and what surrounds it. Lives on the device thread alone."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from cloud_service.conditioning import make_conditioning, on_device, prompt_embeds
from cloud_service.request import Request
from cloud_service.session import Parked, SessionEvent, Stepped
from diffusion.devices import wait_for
from diffusion.measures import Measure, make_measure
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.prediction_types import convert_prediction
from diffusion.tensors import to_array
from diffusion.trajectory import StepResult, Trajectory
from wire.errors import ModelError
from wire.messages import (
    Array,
    Correct,
    Correction,
    Decoded,
    DType,
    ModelDescription,
    Opened,
    Source,
    State,
    Step,
)


class Need(enum.Enum):
    """What a generation wants of the device next."""

    OPENING = enum.auto()
    EVALUATION = enum.auto()
    DECODING = enum.auto()
    EXTRAPOLATION = enum.auto()
    NOTHING = enum.auto()


class _Phase(enum.Enum):
    OPENING = enum.auto()
    RUNNING = enum.auto()
    PARKED = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One pass of the model, over the steps of one session or several.

    Attributes:
        started: `time.monotonic()` seconds.
        seconds: What it took; what each session then makes of its share is that session's alone.
    """

    started: float
    seconds: float


class Generation:
    """One trajectory, its refresh policy and what that measures, its conditioning; after the handoff, its corrections.

    Every method that does work returns what to tell the client, in order.

    Args:
        session_id: Chosen by the service.
        request: What the client asked for.
        model: The large model.
    """

    def __init__(self, session_id: str, request: Request, model: Model) -> None:
        self.session_id = session_id
        self.ready_at = time.monotonic()
        self.deadline_at = self.ready_at + (request.open.deadline_seconds or math.inf)
        self._phase = _Phase.OPENING
        self._source = Source.CLOUD
        self._request = request
        self._model = model
        self._stop_step = request.open.plan.handoff_step
        self._hand_off_at = 0.0
        self._corrections: deque[Correct] = deque()
        self._to_decode: Array | None = None
        self._trajectory: Trajectory
        self._measure: Measure | None = None
        self._conditioning: Conditioning

    @property
    def need(self) -> Need:
        """What it wants of the device now."""
        match self._phase:
            case _Phase.OPENING:
                return Need.OPENING
            case _Phase.RUNNING:
                return Need.EVALUATION if self._source is Source.CLOUD else Need.EXTRAPOLATION
            case _Phase.PARKED if self._corrections:
                return Need.EVALUATION
            case _Phase.PARKED:
                return Need.NOTHING if self._to_decode is None else Need.DECODING

    @property
    def key(self) -> Hashable:
        """What must be equal for two generations to share one forward pass; an opening and a decoding share none."""
        if self.need in (Need.OPENING, Need.DECODING):
            return self.session_id
        return self._request.latents_shape, tuple(self._conditioning.prompt_embeds.shape)

    @property
    def num_pending_corrections(self) -> int:
        """Corrections that wait for the device."""
        return len(self._corrections)

    # ------------------------------------------------------------------------------ opening

    def open(self) -> list[SessionEvent]:
        """Encode the prompt, draw the noise, and tell the client what both ends agree on."""
        started = time.monotonic()
        self._conditioning = make_conditioning(self._request, self._model)
        wait_for(self._model.device)
        encode_prompt_seconds = time.monotonic() - started
        request, stepper = self._request, self._request.stepper
        self._trajectory = Trajectory(
            request.initial_latents(),
            stepper,
            start_step=request.start_step,
            predictor=request.predictor,
            companion=request.companion,
            dtype=self._model.dtype,
        )
        if request.refresh.measure is not None:
            self._measure = make_measure(
                request.refresh.measure, self._trajectory, prediction_type=stepper.prediction_type
            )
        opened = Opened(
            session_id=self.session_id,
            model=ModelDescription(**dataclasses.asdict(self._model.info)),
            scheduler_class=stepper.class_name,
            scheduler_config=json.dumps(stepper.config),
            timesteps=stepper.schedule.timesteps,
            sigmas=stepper.schedule.sigmas,
            latents_shape=request.latents_shape,
            latents_dtype=DType[self._model.info.dtype.upper()],
            codec=request.codec,
            prompt_embeds=prompt_embeds(self._conditioning) if request.open.want_prompt_embeds else None,
            encode_prompt_seconds=encode_prompt_seconds,
        )
        self._phase = _Phase.RUNNING
        return [opened, *self._go_on()]

    # ------------------------------------------------------------------------------ steps

    def extrapolate(self) -> list[SessionEvent]:
        """Run the next step on an extrapolated prediction."""
        none = Forward(started=time.monotonic(), seconds=0.0)
        return self._after_step(self._trajectory.extrapolate(), none, none.started)

    def evaluation(self) -> Evaluation:
        """Return what the model must be asked next, for a correction or a step."""
        if self._phase is _Phase.PARKED:
            correct = self._corrections[0]
            stepper = self._request.stepper
            latents = stepper.scale_model_input(on_device(correct.latents, self._model), correct.step_index)
            timestep = stepper.schedule.timesteps[correct.step_index]
        else:
            latents, timestep = self._trajectory.model_input(), self._trajectory.timestep
        return Evaluation(
            latents=latents,
            timestep=timestep,
            conditioning=self._conditioning,
            guidance_scale=self._request.open.guidance_scale,
            guidance_rescale=self._request.open.guidance_rescale,
        )

    def accept(self, noise_pred: Tensor, forward: Forward) -> list[SessionEvent]:
        """Go on with the model's answer to `evaluation()`.

        Args:
            noise_pred: Guided prediction of the model's own type, `[B, C, H, W]`, float32.
            forward: The pass that it is from.

        Raises:
            ModelError: It, or what the scheduler makes of it, is not finite.
        """
        began = time.monotonic()
        if self._phase is _Phase.PARKED:
            return self._after_correction(noise_pred, forward, began)
        result = self._trajectory.advance(noise_pred, prediction_type=self._model.info.prediction_type)
        return self._after_step(result, forward, began)

    def _after_step(self, result: StepResult, forward: Forward, began: float) -> list[SessionEvent]:
        _check_finite(result.latents, result.step_index)
        if self._measure is not None:
            self._measure.observe(result)
        stream_latents = self._request.open.stream_latents
        stream_prediction = self._request.open.stream_predictions and result.evaluated
        latents = to_array(result.latents) if stream_latents or stream_prediction else None
        before = to_array(result.latents_before) if stream_prediction else None
        prediction = to_array(result.noise_pred.to(result.latents.dtype)) if stream_prediction else None
        ended_at = time.monotonic()
        step = Step(
            step_index=result.step_index,
            source=Source.CLOUD if result.evaluated else Source.EXTRAPOLATED,
            extrapolation_error=result.extrapolation_error,
            compute_seconds=forward.seconds + ended_at - began,
            queue_seconds=forward.started - self.ready_at,
            latents=latents,
            latents_before=before,
            prediction=prediction,
        )
        return [Stepped(step=step, ended_at=ended_at), *self._go_on()]

    def _go_on(self) -> list[SessionEvent]:
        """Decide what the next step needs; where the cloud's part ends, park and say so."""
        self.ready_at = time.monotonic()
        if self._trajectory.step_index >= self._stop_step:
            return [self._park()]
        measured = None if self._measure is None else self._measure.value()
        self._source = self._request.refresh.decide(self._trajectory.step_index, measured)
        return []

    # ------------------------------------------------------------------------------ handoff

    def hand_off(self, step_index: int, arrived_at: float) -> list[SessionEvent]:
        """Stop before a step, or before the next one if that is past; a generation that has ended is left as it is.

        Args:
            step_index: Where the plan ends the cloud's part sooner, it does.
            arrived_at: When the client's wish arrived, `time.monotonic()` seconds.
        """
        self._stop_step = min(self._stop_step, step_index)
        if self._phase is not _Phase.RUNNING or self._trajectory.step_index < self._stop_step:
            return []
        self._hand_off_at = arrived_at
        return [self._park()]

    def _park(self) -> Parked:
        state = self._trajectory.state()
        self._phase = _Phase.PARKED
        return Parked(
            state=State(
                step_index=state.step_index,
                latents=to_array(state.latents),
                scheduler_state={name: to_array(tensor) for name, tensor in state.scheduler_state.items()},
            ),
            done=self._trajectory.done,
            decided_at=max(self.ready_at, self._hand_off_at),
        )

    def correct(self, correct: Correct) -> None:
        """Queue a correction; it is evaluated once the trajectory is parked."""
        if self._phase is _Phase.PARKED and not self._corrections:
            self.ready_at = time.monotonic()
        self._corrections.append(correct)

    def ask_to_decode(self, latents: Array) -> None:
        """Take clean latents to decode, once the trajectory is parked and nothing is to be corrected."""
        if self._phase is _Phase.PARKED and not self._corrections:
            self.ready_at = time.monotonic()
        self._to_decode = latents

    def decode(self) -> list[SessionEvent]:
        """Decode with the model's VAE."""
        assert self._to_decode is not None
        started = time.monotonic()
        latents, self._to_decode = on_device(self._to_decode, self._model), None
        pixels = self._model.decode(latents)
        return [
            Decoded(
                pixels=pixels,
                compute_seconds=time.monotonic() - started,
                queue_seconds=max(0.0, started - self.ready_at),
            )
        ]

    def _after_correction(self, noise_pred: Tensor, forward: Forward, began: float) -> list[SessionEvent]:
        correct = self._corrections.popleft()
        stepper = self._request.stepper
        prediction = convert_prediction(
            noise_pred,
            on_device(correct.latents, self._model),
            source=self._model.info.prediction_type,
            target=stepper.prediction_type,
            alpha=stepper.schedule.alphas[correct.step_index],
            sigma=stepper.schedule.sigmas[correct.step_index],
        )
        _check_finite(prediction, correct.step_index)
        correction = Correction(
            step_index=correct.step_index,
            prediction=to_array(prediction.to(self._model.dtype)),
            compute_seconds=forward.seconds + time.monotonic() - began,
            queue_seconds=forward.started - self.ready_at,
        )
        self.ready_at = time.monotonic()
        return [correction]


def _check_finite(tensor: Tensor, step_index: int) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"the model's answer at step {step_index} is not finite")
