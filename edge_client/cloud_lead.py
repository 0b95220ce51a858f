"""Following the cloud while it leads: from Open to the latents that the edge takes over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession
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
    """

    opened: Opened | None
    state: State | None
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


async def follow_cloud(
    link: CloudLink,
    message: Open,
    *,
    latents_shape: tuple[int, ...],
    policy: HandoffPolicy,
    recorder: Recorder,
    silence_seconds: float,
    check_opened: Callable[[Opened], None],
    check_state: Callable[[Opened, State], None],
) -> Lead:
    """Run one session until the cloud hands off, finishes or is lost.

    Args:
        link: A cloud that was seen SERVING.
        message: The Open.
        latents_shape: `[B, C, H, W]` that the edge model works on.
        policy: Asked after each of the cloud's steps.
        recorder: Told of everything.
        silence_seconds: How long the cloud may say nothing.
        check_opened: Raises if what was agreed cannot be used here.
        check_state: Raises if the state that the cloud hands over cannot be used here.

    Raises:
        EcdiffError: Only one of `WRONG_REQUEST`, before the session exists.
    """
    num_elements = 1
    for dim in latents_shape:
        num_elements *= dim
    session = CloudSession(
        link.stub,
        link.metadata,
        silence_seconds=silence_seconds,
        max_tensor_bytes=num_elements * LATENTS_ITEM_BYTES,
        observe=recorder.codec_events.append,
        stream_link=recorder.stream_link,
    )
    follower = _Follower(session, policy, recorder)
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
    finally:
        stream_seconds = time.perf_counter() - started
        await session.close()
        recorder.traffic(session)
    cloud_seconds = recorder.seconds["cloud_compute"] + recorder.seconds["cloud_queue"]
    opening_seconds = follower.opened.encode_prompt_seconds if follower.opened else 0.0
    handoff_seconds = sum(recorder.handoff_stages.values())
    recorder.seconds["network"] = max(0.0, stream_seconds - cloud_seconds - opening_seconds - handoff_seconds)
    return Lead(opened=follower.opened, state=follower.newest, lost=follower.lost)


class _Follower:
    """Takes in one session's messages."""

    def __init__(self, session: CloudSession, policy: HandoffPolicy, recorder: Recorder) -> None:
        self._session = session
        self._policy = policy
        self._recorder = recorder
        self.opened: Opened | None = None
        self.newest: State | None = None
        self.lost: EcdiffError | None = None

    async def follow(self, check_state: Callable[[State], None]) -> None:
        asked_to_stop = False
        while True:
            message = await self._session.receive()
            received_at = time.time()
            self._recorder.traffic(self._session)
            match message:
                case Step():
                    self._take_step(message, received_at)
                    reason = self._policy.decide(message.step_index + 1)
                    # At the plan's own step the cloud stops by itself.
                    if reason not in (None, HandoffReason.PLAN) and not asked_to_stop:
                        self._session.send(HandOff())
                        asked_to_stop = True
                case HandedOff() | Finished():
                    check_state(message.state)
                    self._take_over(message, received_at)
                    return
                case Heartbeat():
                    self._recorder.queue_position = message.queue_position
                    self._recorder.notify()

    def _take_step(self, step: Step, received_at: float) -> None:
        self._recorder.queue_position = 0
        if step.latents is not None:
            self.newest = State(step_index=step.step_index + 1, latents=step.latents)
            self._session.send(Credit())
        self._recorder.cloud_step(step, received_at)

    def _take_over(self, message: HandedOff | Finished, received_at: float) -> None:
        self.newest = message.state
        self._recorder.cloud_totals(message.totals)
        if isinstance(message, HandedOff):
            decode_seconds = self._recorder.codec_events[-1].seconds
            self._recorder.handoff_latency(message, received_at, decode_seconds)
