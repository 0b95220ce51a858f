"""One generation on the edge: follow the cloud, take over, finish, decode."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

from PIL import Image

from diffusion.edge_lead import EdgeLead, make_edge_lead
from diffusion.schedule import Schedule
from diffusion.sensitivity import latents_sensitivities
from diffusion.tensors import from_array
from diffusion.trajectory import Trajectory
from edge_client.clock import Clock
from edge_client.cloud_lead import CloudLead
from edge_client.cloud_link import CloudLink
from edge_client.decoding import Decoding
from edge_client.driving_scheduler import DrivingScheduler
from edge_client.edge_model import EdgeModel
from edge_client.finish import Finish
from edge_client.lead import Lead
from edge_client.notes import note_deadline, note_handoff
from edge_client.opening import make_session, open_message
from edge_client.patience import Patience
from edge_client.peak_memory import peak_memory
from edge_client.prompt import Prompt
from edge_client.recorder import Recorder
from edge_client.relay import NextLink, Relay
from edge_client.report import Report, make_report
from edge_client.request import GenerationRequest
from edge_client.shadow import Shadow
from edge_client.start import Start
from orchestrator.corrections import CorrectionPrice, Granted, calls_left, make_corrections
from orchestrator.decision import Decision
from orchestrator.handoff import AgreementHandoff, HandoffReason
from wire.messages import Array, Opened, PromptEmbeds, PromptText, Source, State, Step

# A cloud that is asked anything gets at least this.
MIN_DEADLINE_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What a generation gives.

    Attributes:
        pixels: The pictures `[B, H, W, 3]`, in the order of their seeds, or videos `[B, F, H, W, 3]`; uint8, RGB.
        latents: Final latents in the model's layout, float32, before the VAE's own scaling.
        report: docs/report.md.
    """

    pixels: Array
    latents: Array
    report: Report

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in the order of their seeds; of videos the first frames."""
        firsts = self.pixels if self.pixels.ndim == 4 else self.pixels[:, 0]
        return [Image.fromarray(picture) for picture in firsts]


class Generation:
    """Runs one request on an edge model and, unless the mode is `edge`, a cloud.

    Args:
        request: What is asked for.
        edge: The small model.
        link: The cloud; None in mode edge.
        recorder: Told of everything.
        patience: How long the cloud may be silent.
        decision: What was decided for it.
        next_link: Where it goes on when a cloud is lost; see `Relay`.

    Attributes:
        size: Of the pictures, as the model that drives the trajectory takes it.
    """

    def __init__(
        self,
        request: GenerationRequest,
        edge: EdgeModel,
        link: CloudLink | None,
        recorder: Recorder,
        *,
        decision: Decision,
        patience: Patience,
        next_link: NextLink,
    ) -> None:
        self._request = request
        self._edge = edge
        self._link = link
        self._recorder = recorder
        self._plan = decision.plan
        self._edge_plan = decision.edge_plan
        self._asks_cloud = decision.asks_cloud
        self._patience = patience
        self._next_link = next_link
        info = edge.model.info if link is None else link.description.model
        self.size = request.size(info)
        self._latents_shape = edge.model.latents_shape(*self.size)
        self._scheduler = DrivingScheduler(
            request.scheduler,
            info,
            noise_seed=request.seed,
            num_inference_steps=self._plan.num_inference_steps,
            latents_shape=self._latents_shape,
            device=edge.model.device,
        )
        self._start_step = request.plan_options.start_step
        self._start = Start(request, edge, self._latents_shape)
        self._decoding = Decoding(edge, recorder, self.size)
        self._prompt = Prompt(request, edge, recorder)
        self._told: PromptText | PromptEmbeds
        self._edge_lead: EdgeLead | None = None
        agreement = self._edge_plan.agreement
        self._agreement = (
            None if agreement is None else AgreementHandoff(agreement, self._plan, start_step=self._start_step)
        )
        # An explicit step is exact: only the loss of the cloud may move it.
        self._may_hand_off_in_time = request.plan_options.handoff_step is None
        self._clock = Clock(self._plan, edge, deadline_ms=request.plan_options.deadline_ms, estimate=decision.estimate)

    @property
    def schedule(self) -> Schedule:
        """Of the trajectory."""
        return self._scheduler.stepper.schedule

    async def run(self) -> GenerationResult:
        """Return the pictures.

        Raises:
            EcdiffError: The cloud says that the request itself is wrong, or the edge model's answer is not finite.
        """
        started = time.perf_counter()
        self._clock.start()
        if self._request.image is not None:
            await self._encode_picture()
        self._prompt.start()
        try:
            if self._link is None:
                trajectory = await self._finish(None, None)
            elif self._asks_cloud:
                trajectory = await self._with_cloud(self._link)
            else:
                self._recorder.hand_off(HandoffReason.PLAN, self._start_step)
                if self._start_step:
                    self._recorder.warn(
                        f"the picture's steps begin at step {self._start_step}, where the edge leads by plan: no cloud "
                        "is asked"
                    )
                trajectory = await self._finish(None, None)
        finally:
            self._prompt.stop()
        pixels = await self._decoding.pixels(trajectory.latents)
        self._recorder.seconds["total"] = time.perf_counter() - started + self._recorder.seconds["connect"]
        self._recorder.memory = peak_memory(self._edge.model.device)
        note_deadline(self._recorder, self._clock.seconds_left())
        self._recorder.enter("done")
        return GenerationResult(
            pixels=pixels,
            latents=trajectory.latents.float().cpu().numpy(),
            report=make_report(self._recorder),
        )

    async def _encode_picture(self) -> None:
        began = time.perf_counter()
        self._recorder.enter("encoding")
        await self._start.encode_picture(self._scheduler.asked_schedule())
        self._recorder.seconds["encode_picture"] = time.perf_counter() - began

    async def _with_cloud(self, link: CloudLink) -> Trajectory:
        """Follow the cloud and finish; a session that is asked nothing more is closed while the edge model goes on."""
        self._told = await self._prompt.for_cloud()
        relay = Relay(
            link, self._next_link, self._lead_on, self._recorder, seconds_to_takeover=self._clock.seconds_to_takeover
        )
        leaving: asyncio.Task[None] | None = None
        is_settled = False
        try:
            lead = await relay.follow()
            note_handoff(self._recorder, lead, self._agreement, self._scheduler.stepper if lead.opened else None)
            if self._edge_plan.corrections == "none" and not self._decoding.is_clouds:
                leaving = asyncio.create_task(relay.cloud.close())
            trajectory = await self._finish(lead, relay.cloud)
            if self._decoding.is_clouds:
                await self._decoding.ask(relay.cloud, lead, trajectory.latents)
            is_settled = relay.cloud.is_settled
            return trajectory
        finally:
            leaving = leaving or asyncio.create_task(relay.cloud.close())
            if is_settled:
                relay.link.let_go(leaving)
            else:
                await leaving
            await relay.take_down()

    def _lead_on(self, link: CloudLink, state: State | None) -> CloudLead:
        """Return what follows a session on a link, from a state; None: from the noise."""
        recorder, clock = self._recorder, self._clock
        deadline_seconds = 0.0
        if self._may_hand_off_in_time and not math.isinf(clock.seconds_left()):
            next_step = self._start_step if state is None else state.step_index
            deadline_seconds = max(clock.seconds_left(), clock.seconds_to_takeover(next_step), MIN_DEADLINE_SECONDS)
        return CloudLead(
            make_session(link, self._latents_shape, recorder, patience=self._patience),
            open_message(
                self._request,
                self._plan,
                shadow=self._edge_plan.shadow,
                size=self.size,
                start=state or self._start.for_cloud(),
                deadline_seconds=deadline_seconds,
                prompt=self._told,
            ),
            recorder,
            check_opened=self._agree,
            check_state=self._scheduler.load_history,
            is_late=self._is_late,
            shadow=self._make_shadow(),
            deadline_in=clock.seconds_to_takeover if self._may_hand_off_in_time else lambda next_step: math.inf,
        )

    def _agree(self, opened: Opened) -> None:
        self._scheduler.agree(opened)
        self._prompt.take(opened)

    def _make_shadow(self) -> Shadow | None:
        if not self._edge_plan.shadow:
            return None
        return Shadow(self._edge, self._lead_with_edge, self._agreement, self._recorder, is_late=self._is_late)

    def _is_late(self, step: Step) -> bool:
        return self._recorder.is_late(step, self._patience.bearable_seconds)

    async def _lead_with_edge(self) -> EdgeLead:
        """Return this generation's `EdgeLead`, made when it is first wanted: the prompt is encoded by then."""
        if self._edge_lead is None:
            conditioning = await self._prompt.conditioning()
            edge_plan, request = self._edge_plan, self._request
            self._edge_lead = make_edge_lead(
                self._edge.evaluator(
                    conditioning,
                    guidance_scale=request.weight,
                    guidance_rescale=request.guidance_rescale,
                ),
                self._scheduler.stepper,
                prediction_type=self._edge.model.info.prediction_type,
                residual=edge_plan.residual,
                fade=edge_plan.fade,
                reach=edge_plan.reach,
                compares=edge_plan.corrections == "disagreement",
            )
        return self._edge_lead

    def _take_over(self, lead: Lead | None) -> Trajectory:
        """Return the trajectory at the step where the edge begins. Runs on the device thread."""
        model = self._edge.model
        if lead is None or lead.opened is None:
            self._scheduler.be_alone()
        if lead is not None and lead.state is not None:
            latents, start_step = from_array(lead.state.latents), lead.state.step_index
        else:
            latents = self._start.latents(self._scheduler.stepper.schedule.init_noise_sigma)
            start_step = self._start_step
        return Trajectory(latents.to(model.device), self._scheduler.stepper, start_step=start_step, dtype=model.dtype)

    async def _finish(self, lead: Lead | None, cloud: CloudLead | None) -> Trajectory:
        """Run what is left on the edge model, with the cloud's corrections; return the trajectory at its end."""
        trajectory = await self._edge.run(self._take_over, lead)
        if trajectory.done:
            return trajectory
        self._recorder.enter("edge")
        finish = Finish(
            self._edge,
            await self._lead_with_edge(),
            trajectory,
            self._recorder,
            cloud=None if lead is None or lead.lost is not None else cloud,
            corrections=self._granted(trajectory),
            clock=self._clock,
        )
        began = time.perf_counter()
        if lead is not None:
            stages = self._recorder.handoff_stages
            stages["edge_start"] = began - lead.decided_at
            stages["total"] = sum(stages.values())
            self._recorder.seconds["handoff"] = stages["total"]
            self._recorder.ages.decided("handoff", trajectory.step_index)
        await finish.run()
        return trajectory

    def _granted(self, trajectory: Trajectory) -> Granted:
        """Return the plan's corrections within its budget and the deadline, priced by what things took so far."""
        schedule, recorder = trajectory.schedule, self._recorder
        real = [step for step in recorder.cloud_steps.values() if step.source is Source.CLOUD]
        price = CorrectionPrice(
            rtt_seconds=recorder.link.rtt_quantile_seconds(0.5),
            cloud_step_seconds=sum(step.compute_seconds + step.queue_seconds for step in real) / max(1, len(real)),
            edge_step_seconds=self._edge.step_seconds.seconds,
            decode_seconds=self._edge.decode_seconds.seconds,
        )
        sensitivity = latents_sensitivities(schedule, self._scheduler.stepper.prediction_type)
        return Granted(
            policy=make_corrections(self._edge_plan, sensitivity),
            num_inference_steps=schedule.num_steps,
            calls_left=calls_left(self._edge_plan, recorder.nfe["cloud"]),
            seconds_left=self._clock.seconds_left,
            price=price,
        )
