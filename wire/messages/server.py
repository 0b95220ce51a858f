"""What the cloud says on a stream, from `Opened` to the state that it hands off or finishes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from wire.messages.description import PROTOCOL_VERSION, ModelDescription
from wire.messages.tensors import Array, Codec, DType, Source
from wire.messages.trajectory import PromptEmbeds, State


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The session exists; what both ends now agree on."""

    session_id: str
    model: ModelDescription
    scheduler_class: str
    scheduler_config: str
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    latents_shape: tuple[int, ...]
    latents_dtype: DType
    codec: Codec
    protocol_version: int = PROTOCOL_VERSION
    prompt_embeds: PromptEmbeds | None = None
    encode_prompt_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Step `step_index` is done; `latents` is x at `step_index + 1` where a credit was at hand.

    `extrapolation_error` is None where there was nothing to compare.
    """

    step_index: int
    source: Source
    extrapolation_error: float | None = None
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    latents: Array | None = None
    latents_before: Array | None = None
    prediction: Array | None = None
    wait_seconds: float = 0.0
    encode_seconds: float = 0.0
    sent_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the session cost the cloud."""

    nfe_cloud: int = 0
    nfe_extrapolated: int = 0
    nfe_correction: int = 0
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HandedOff:
    """The cloud stopped before the last step; the session is parked."""

    state: State
    totals: Totals
    wait_seconds: float = 0.0
    encode_seconds: float = 0.0
    sent_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The large model's guided prediction at the latents that `Correct` brought."""

    step_index: int
    prediction: Array
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The cloud ran every step."""

    state: State
    totals: Totals
    wait_seconds: float = 0.0
    encode_seconds: float = 0.0
    sent_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The server lives; `queue_position` sessions are ahead on the device."""

    queue_position: int = 0
    step_index: int = 0


@dataclass(frozen=True, kw_only=True)
class Pong:
    """Answer to Ping: the four-stamp probe's t0, t1, t2."""

    t0: float
    t1: float
    t2: float


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Pictures `[B, H, W, 3]`, or videos `[B, F, H, W, 3]`, uint8 RGB."""

    pixels: Array
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0


ServerMessage: TypeAlias = Opened | Step | HandedOff | Correction | Decoded | Finished | Heartbeat | Pong
