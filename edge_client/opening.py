"""How a generation is opened: the session, and the Open that asks for it."""

from __future__ import annotations

import math

from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import CloudSession
from edge_client.patience import Patience
from edge_client.recorder import Recorder
from edge_client.request import CODEC_OFFERS, GenerationRequest, Size
from orchestrator.windows import CREDIT_WINDOW, SHADOW_WINDOW
from wire.messages import Open, Plan, PromptEmbeds, PromptText, Start

LATENTS_ITEM_BYTES = 4


def open_message(
    request: GenerationRequest,
    plan: Plan,
    *,
    shadow: bool,
    size: Size,
    start: Start,
    deadline_seconds: float,
    prompt: PromptText | PromptEmbeds,
) -> Open:
    """Return the Open of this request, from `start` on; `deadline_seconds` is what the cloud's part has, 0 for no end.

    `prompt` is all that the cloud is told of it.
    For the shadow the cloud sends the tensors of real steps, and of no other step.
    """
    return Open(
        request_id=request.request_id,
        conditioning=prompt,
        want_prompt_embeds=request.text_encoder == "cloud",
        start=start,
        plan=plan,
        guidance_scale=request.weight,
        guidance_rescale=request.guidance_rescale,
        height=size.height,
        width=size.width,
        num_images=size.num_images,
        num_frames=size.num_frames,
        scheduler=request.scheduler,
        stream_latents=not shadow,
        stream_predictions=shadow,
        codecs=CODEC_OFFERS[request.latents_codec],
        deadline_seconds=deadline_seconds,
        credit=SHADOW_WINDOW if shadow else CREDIT_WINDOW,
    )


def make_session(
    link: CloudLink, latents_shape: tuple[int, ...], recorder: Recorder, *, patience: Patience
) -> CloudSession:
    """Return a session, not opened yet, for latents of `latents_shape`."""
    return CloudSession(
        link.stub,
        link.metadata,
        patience=patience,
        max_tensor_bytes=math.prod(latents_shape) * LATENTS_ITEM_BYTES,
        observe=recorder.codec_events.append,
        stream_link=recorder.stream_link,
    )
