"""One generation on the edge: follow the cloud, take over, finish, decode."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusion.model import Conditioning
from diffusion.noise import draw_noise
from diffusion.schedulers import SCHEDULERS, Stepper, scheduler_for
from diffusion.tensors import from_array
from diffusion.trajectory import Trajectory
from edge_client.cloud_lead import Lead, follow_cloud, make_session, open_message
from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession, Patience
from edge_client.edge_model import EdgeModel
from edge_client.report import Recorder, Report
from edge_client.request import GenerationRequest
from orchestrator.handoff import FixedHandoff, HandoffReason
from wire.errors import IncompatibleModels, ProtocolError
from wire.messages import Array, Opened, Plan, State


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What a generation gives.

    Attributes:
        images: The pictures, in the order of their seeds.
        latents: Final latents `[B, C, H, W]`, float32, before the VAE's own scaling.
        report: docs/report.md.
    """

    images: list[Image.Image]
    latents: Array
    report: Report


class Generation:
    """Runs one request on an edge model and, unless the mode is `edge`, a cloud."""

    def __init__(
        self,
        request: GenerationRequest,
        edge: EdgeModel,
        link: CloudLink | None,
        recorder: Recorder,
        *,
        patience: Patience,
    ) -> None:
        self._request = request
        self._edge = edge
        self._link = link
        self._recorder = recorder
        self._patience = patience
        info = edge.model.info if link is None else link.description.model
        self._height = request.height or info.default_height
        self._width = request.width or info.default_width
        self._latents_shape = edge.model.latents_shape(self._height, self._width, request.num_images)
        self._stepper: Stepper
        self._noise = None if request.initial_latents is None else read_noise(request, self._latents_shape)

    async def run(self) -> GenerationResult:
        """Return the pictures.

        Raises:
            EcdiffError: The cloud says that the request itself is wrong.
        """
        started = time.perf_counter()
        encoding = asyncio.create_task(self._encode_prompt())
        try:
            if self._link is None:
                trajectory = await self._finish(None, encoding)
            else:
                trajectory = await self._with_cloud(self._link, encoding)
        finally:
            encoding.cancel()
        self._recorder.enter("decoding")
        decoding = time.perf_counter()
        pixels = await self._edge.decode(trajectory.latents)
        self._recorder.seconds["decode"] = time.perf_counter() - decoding
        self._recorder.seconds["total"] = time.perf_counter() - started + self._recorder.seconds["connect"]
        self._recorder.enter("done")
        return GenerationResult(
            images=[Image.fromarray(picture) for picture in pixels],
            latents=trajectory.latents.float().cpu().numpy(),
            report=self._recorder.report(),
        )

    async def _encode_prompt(self) -> Conditioning:
        started = time.perf_counter()
        request = self._request
        encoded = await self._edge.encode_prompt(request.prompt, request.negative_prompt, guided=request.guided)
        self._recorder.seconds["encode_prompt"] = time.perf_counter() - started
        return encoded

    async def _with_cloud(self, link: CloudLink, encoding: asyncio.Task[Conditioning]) -> Trajectory:
        """Follow the cloud and finish; the session is closed while the edge model already runs."""
        plan, recorder = self._request.plan, self._recorder
        session = make_session(link, self._latents_shape, recorder, patience=self._patience)
        link.estimate.take_new_rtts()  # those of earlier generations
        link.start_probing()
        try:
            lead = await self._follow(session, plan)
            closing = asyncio.create_task(session.close())
            try:
                return await self._finish(lead, encoding)
            finally:
                await closing
        finally:
            await link.stop_probing()
            recorder.rtt_seconds = link.estimate.take_new_rtts()
            recorder.traffic(session)

    async def _follow(self, session: CloudSession, plan: Plan) -> Lead:
        try:
            lead = await follow_cloud(
                session,
                open_message(self._request, plan, height=self._height, width=self._width, noise=self._noise),
                policy=FixedHandoff(plan),
                recorder=self._recorder,
                check_opened=self._check_opened,
                check_state=self._check_state,
            )
        except BaseException:
            await session.close()
            raise
        self._note_handoff(plan, lead)
        return lead

    def _check_opened(self, opened: Opened) -> None:
        """What the cloud agreed to must be what the edge model can go on with."""
        if opened.latents_shape != self._latents_shape:
            raise IncompatibleModels(
                f"the cloud works on latents of shape {opened.latents_shape}, the edge on {self._latents_shape}"
            )
        asked = SCHEDULERS[self._request.scheduler]
        if opened.scheduler_class != asked:
            raise ProtocolError(f"the cloud steps by {opened.scheduler_class}, the edge asked for {asked}")
        try:
            self._stepper = self._make_stepper(opened)
        except ValueError as error:
            raise ProtocolError(f"the cloud's scheduler cannot be used: {error}") from error
        schedule = self._stepper.schedule
        for what, ours, theirs in (
            ("timesteps", schedule.timesteps, opened.timesteps),
            ("sigmas", schedule.sigmas, opened.sigmas),
        ):
            # Another release may sum the betas in another order: float32 leaves the last noise levels four digits.
            if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-3):
                raise ProtocolError(f"the cloud's {what} are not those of the scheduler that it names")

    def _check_state(self, opened: Opened, state: State) -> None:
        """What the cloud hands over must fit the scheduler that it named; the solver's history is loaded."""
        history = {name: from_array(value) for name, value in state.scheduler_state.items()}
        try:
            self._stepper.load_state(history, step_index=state.step_index)
        except ValueError as error:
            raise ProtocolError(f"the scheduler state of {opened.scheduler_class} cannot be used: {error}") from error

    def _note_handoff(self, plan: Plan, lead: Lead) -> None:
        step = lead.state.step_index if lead.state is not None else 0
        restarts = 0 < step < plan.num_inference_steps and self._stepper.is_multistep and not self._stepper.state()
        restart = f"{self._request.scheduler} restarts there at order 1"
        if lead.lost is not None:
            self._recorder.hand_off(lead.lost_reason, step)
            what = lead.lost_reason.value.replace("_", " ")
            line = f"{what} ({lead.lost}): the edge goes on from step {step} of {plan.num_inference_steps}"
            self._recorder.fall_back(f"{line}; {restart}" if restarts else line)
        elif step < plan.num_inference_steps:
            self._recorder.hand_off(HandoffReason.PLAN, step)
            if restarts:
                self._recorder.fall_back(
                    f"the cloud handed over at step {step} without the solver's history; {restart}"
                )

    def _make_stepper(self, opened: Opened | None) -> Stepper:
        """Return the scheduler that drives this generation: the cloud's wherever there is one."""
        if opened is not None:
            name, config = opened.scheduler_class, json.loads(opened.scheduler_config)
        else:
            info: Any = self._edge.model.info if self._link is None else self._link.description.model
            name, config = scheduler_for(self._request.scheduler, json.loads(info.scheduler_config))
        return Stepper(name, config, self._request.plan.num_inference_steps, self._edge.model.device)

    def _take_over(self, lead: Lead | None) -> Trajectory:
        """Return the trajectory at the step where the edge begins. Runs on the device thread."""
        model = self._edge.model
        # A lost cloud may have agreed to what cannot be used; then there is no stepper of its own yet.
        stepper = self._stepper if lead is not None and lead.opened is not None else self._make_stepper(None)
        if lead is not None and lead.state is not None:
            latents, start_step = from_array(lead.state.latents), lead.state.step_index
        else:
            if self._noise is not None:
                latents = torch.from_numpy(self._noise)
            else:
                latents = draw_noise(self._latents_shape, self._request.seed)
            latents, start_step = latents * stepper.schedule.init_noise_sigma, 0
        return Trajectory(latents.to(model.device), stepper, start_step=start_step, dtype=model.dtype)

    async def _finish(self, lead: Lead | None, encoding: asyncio.Task[Conditioning]) -> Trajectory:
        """Run what is left on the edge model; return the trajectory at its end."""
        recorder, request = self._recorder, self._request
        trajectory = await self._edge.run(self._take_over, lead)
        if trajectory.done:
            return trajectory
        recorder.enter("edge")
        began = await self._edge.finish(
            trajectory,
            await encoding,
            guidance_scale=request.guidance_scale,
            guidance_rescale=request.guidance_rescale,
            on_step=lambda result: recorder.edge_step(result.step_index),
        )
        recorder.seconds["edge_compute"] = time.perf_counter() - began
        if lead is not None:
            stages = recorder.handoff_stages
            stages["edge_start"] = began - lead.decided_at
            stages["total"] = sum(stages.values())
            recorder.seconds["handoff"] = stages["total"]
        return trajectory


def read_noise(request: GenerationRequest, latents_shape: tuple[int, ...]) -> Array:
    """Read `--initial-latents`.

    Raises:
        ValueError: Not a float array of the latents' shape, or not finite.
        OSError: The file cannot be read.
    """
    path = request.initial_latents
    assert path is not None
    try:
        noise = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy array: {error}") from error
    if noise.shape != latents_shape:
        raise ValueError(f"{path} has shape {noise.shape}, this model and size need {latents_shape}")
    if noise.dtype.kind != "f" or not np.isfinite(noise).all():
        raise ValueError(f"{path} must hold finite floating-point numbers")
    return np.ascontiguousarray(noise, dtype=np.float32)
