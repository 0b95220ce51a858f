"""Following the cloud while it leads: from Open to the latents that the edge takes over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession, Patience
from edge_client.report import Recorder
from edge_client.request import CODEC_OFFERS, GenerationRequest
from orchestrator.handoff import HandoffPolicy, HandoffReason
from wire.errors import (
    Busy,
    Cancelled,
    EcdiffError,
    IncompatibleModels,
    InvalidRequest,
    LimitExceeded,
    NotServing,
    ProtocolError,
    Unauthenticated,
    UnknownModel,
    VersionMismatch,
)
from wire.messages import (
    Array,
    Credit,
    Finished,
    HandedOff,
    HandOff,
    Heartbeat,
    Noise,
    Open,
    Opened,
    Plan,
    PromptText,
    Seed,
    State,
    Step,
)

# Before the session exists these say that the request itself is wrong: the user must hear of it.
WRONG_REQUEST = (InvalidRequest, LimitExceeded, VersionMismatch, UnknownModel, Unauthenticated, IncompatibleModels)
# Latents under way at a time: one being sent, one waiting.
CREDIT_WINDOW = 2
LATENTS_ITEM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Lead:
    """What the cloud left us with.

    Attributes:
        opened: What was agreed; None if the cloud went before that, or it cannot be used.
        state: The newest latents that arrived, and the step they are for; None if none did.
        lost: Why the cloud did not come to the plan's end; None if it did.
        decided_at: When that was known and decoded, on `time.perf_counter`'s clock.
    """

    opened: Opened | None
    state: State | None
    decided_at: float
    lost: EcdiffError | None = None

    @property
    def lost_reason(self) -> HandoffReason:
        """The report's word for how the cloud was lost."""
        if isinstance(self.lost, (NotServing, Cancelled)):
            return HandoffReason.CLOUD_LOST
        return HandoffReason.CLOUD_FULL if isinstance(self.lost, Busy) else HandoffReason.CLOUD_ERROR


def open_message(request: GenerationRequest, plan: Plan, *, height: int, width: int, noise: Array | None) -> Open:
    """Return the Open of this request."""
    return Open(
        request_id=request.request_id,
        conditioning=PromptText(prompt=request.prompt, negative_prompt=request.negative_prompt),
        start=Seed(seed=request.seed) if noise is None else Noise(noise=noise),
        plan=plan,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        height=height,
        width=width,
        num_images=request.num_images,
        scheduler=request.scheduler,
        codecs=CODEC_OFFERS[request.latents_codec],
        credit=CREDIT_WINDOW,
    )


def make_session(
    link: CloudLink, latents_shape: tuple[int, ...], recorder: Recorder, *, patience: Patience
) -> CloudSession:
    """Return a session, not opened yet, for latents `[B, C, H, W]` of `latents_shape`."""
    return CloudSession(
        link.stub,
        link.metadata,
        patience=patience,
        max_tensor_bytes=math.prod(latents_shape) * LATENTS_ITEM_BYTES,
        observe=recorder.codec_events.append,
        stream_link=recorder.stream_link,
    )


async def follow_cloud(
    session: CloudSession,
    message: Open,
    *,
    policy: HandoffPolicy,
    recorder: Recorder,
    check_opened: Callable[[Opened], None],
    check_state: Callable[[Opened, State], None],
) -> Lead:
    """Run one session until the cloud hands off, finishes or is lost; closing it is the caller's.

    Args:
        session: Not opened yet.
        message: The Open.
        policy: Asked after each of the cloud's steps.
        recorder: Told of everything.
        check_opened: Raises if what was agreed cannot be used here.
        check_state: Raises if the state that the cloud hands over cannot be used here.

    Raises:
        EcdiffError: Only one of `WRONG_REQUEST`, before the session exists.
    """
    follower = _Follower(session, policy, recorder, message.plan)
    started = time.perf_counter()
    opened: Opened | None = None
    try:
        opened = await session.open(message)
        check_opened(opened)
        follower.opened = opened
        recorder.enter("cloud")
        await follower.follow(lambda state: check_state(opened, state))
    except EcdiffError as error:
        if opened is None and isinstance(error, WRONG_REQUEST):
            raise
        follower.lost = error
        recorder.cloud_totals_from_steps()
    decided_at = time.perf_counter()
    if follower.opened is not None:
        recorder.seconds["cloud_compute"] += follower.opened.encode_prompt_seconds
    cloud_seconds = recorder.seconds["cloud_compute"] + recorder.seconds["cloud_queue"]
    handoff_seconds = sum(recorder.handoff_stages.values())
    recorder.seconds["network"] = max(0.0, decided_at - started - cloud_seconds - handoff_seconds)
    return Lead(opened=follower.opened, state=follower.newest, lost=follower.lost, decided_at=decided_at)


class _Follower:
    """Takes in one session's messages, and holds the cloud to the plan."""

    def __init__(self, session: CloudSession, policy: HandoffPolicy, recorder: Recorder, plan: Plan) -> None:
        self._next_step = 0
        self._plan = plan
        self._asked_to_stop = False
        self._session = session
        self._policy = policy
        self._recorder = recorder
        self.opened: Opened | None = None
        self.newest: State | None = None
        self.lost: EcdiffError | None = None

    async def follow(self, check_state: Callable[[State], None]) -> None:
        while True:
            message = await self._session.receive()
            self._recorder.traffic(self._session)
            match message:
                case Step():
                    self._take_step(message)
                    reason = self._policy.decide(message.step_index + 1)
                    # At the plan's own step the cloud stops by itself.
                    if reason not in (None, HandoffReason.PLAN) and not self._asked_to_stop:
                        self._session.send(HandOff())
                        self._asked_to_stop = True
                case HandedOff() | Finished():
                    self._check_end(message.state.step_index)
                    check_state(message.state)
                    self._take_over(message)
                    return
                case Heartbeat():
                    self._recorder.queue_position = message.queue_position
                    self._recorder.notify()

    def _check_end(self, step_index: int) -> None:
        if step_index != self._next_step:
            raise ProtocolError(f"the cloud ends at step {step_index}, but the next step is {self._next_step}")
        if step_index != self._plan.handoff_step and not self._asked_to_stop:
            raise ProtocolError(f"the cloud ends at step {step_index}, the plan at {self._plan.handoff_step}")

    def _take_step(self, step: Step) -> None:
        if step.step_index != self._next_step:
            raise ProtocolError(f"the cloud sent step {step.step_index} where step {self._next_step} was due")
        self._next_step += 1
        self._recorder.queue_position = 0
        if step.latents is not None:
            self.newest = State(step_index=step.step_index + 1, latents=step.latents)
            self._session.send(Credit())
        self._recorder.cloud_step(step, self._session.received_at)

    def _take_over(self, message: HandedOff | Finished) -> None:
        self.newest = message.state
        self._recorder.cloud_totals(message.totals)
        if isinstance(message, HandedOff):
            self._recorder.handoff_latency(message, self._session.received_at, self._session.decode_seconds)
