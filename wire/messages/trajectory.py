"""A prompt and a trajectory between two steps, as both ends tell each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from wire.messages.tensors import Array


@dataclass(frozen=True, kw_only=True)
class PromptText:
    """The prompt as text; the cloud encodes it."""

    prompt: str
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptEmbeds:
    """The prompt as embeddings `[1, L, D]` and, where the family has them, pooled ones `[1, P]`.

    The negative ones are absent without classifier-free guidance.
    """

    prompt_embeds: Array
    negative_prompt_embeds: Array | None = None
    pooled_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None

    def __iter__(self) -> Iterator[Array]:
        """Every tensor that is there."""
        return (each for each in vars(self).values() if each is not None)


@dataclass(frozen=True, kw_only=True)
class State:
    """A trajectory between two steps.

    Attributes:
        step_index: The next step to run.
        latents: x at `step_index`, scheduler scaling.
        scheduler_state: A multistep solver's history, by name, each float32 and of the latents' shape.
    """

    step_index: int
    latents: Array
    scheduler_state: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Start from noise that both ends can draw: picture j uses a CPU generator with seed `seed + j`."""

    seed: int


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Start from this standard normal noise (before the scheduler's `init_noise_sigma`)."""

    noise: Array


Start = Seed | Noise | State
"""Where a trajectory starts."""
