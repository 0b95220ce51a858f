"""What the edge says on a stream, from `Open` to `Close`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from wire.messages.description import PROTOCOL_VERSION
from wire.messages.plan import Plan
from wire.messages.tensors import Array, Codec
from wire.messages.trajectory import PromptEmbeds, PromptText, Start


@dataclass(frozen=True, kw_only=True)
class Open:
    """Opens a generation. `height` and `width` are picture pixels, 0 for the model's default."""

    request_id: str
    conditioning: PromptText | PromptEmbeds
    start: Start
    plan: Plan
    protocol_version: int = PROTOCOL_VERSION
    model: str = ""
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    height: int = 0
    width: int = 0
    num_images: int = 1
    num_frames: int = 0
    scheduler: str = "ddim"
    stream_latents: bool = True
    stream_predictions: bool = False
    want_prompt_embeds: bool = False
    codecs: tuple[Codec, ...] = (Codec.ZSTD, Codec.RAW)
    credit: int = 2
    deadline_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Credit:
    """The client is ready for `count` more latents."""

    count: int = 1


@dataclass(frozen=True, kw_only=True)
class HandOff:
    """Stop before `step_index`, at once if that is past; send the newest state."""

    step_index: int = 0


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Evaluate the large model at `step_index` on `latents`."""

    step_index: int
    latents: Array


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Decode clean latents with the large model's VAE."""

    latents: Array


@dataclass(frozen=True, kw_only=True)
class Close:
    """The client is done; the session can go."""


@dataclass(frozen=True, kw_only=True)
class Ping:
    """In-stream probe."""

    t0: float


ClientMessage: TypeAlias = Open | Credit | HandOff | Correct | Decode | Close | Ping
