"""What the two ends say to each other, as frozen dataclasses.

`wire.convert` turns them into protobuf and back; nothing else in the project touches protobuf
fields. Arrays are numpy: float32, float16 or `ml_dtypes.bfloat16`. Latents and predictions are
`[B, C, H, W]` in latent pixels; embeddings are `[1, L, D]`. Times are seconds; wall clocks
(`sent_at`, `t0`...) are Unix seconds of the end that wrote them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

# The command lines take names from here before they know whether there is work: numpy is for the types only.
if TYPE_CHECKING:
    from numpy.typing import NDArray

PROTOCOL_VERSION = 1
# A gradient needs two real predictions.
MIN_WARMUP_STEPS = 2

Array: TypeAlias = "NDArray[Any]"


class DType(enum.Enum):
    """Element type on the wire; the value is the number in the schema."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3


class Codec(enum.Enum):
    """How a tensor's bytes are written; the value is the number in the schema."""

    RAW = 1
    ZSTD = 2
    INT8_BLOCK = 3

    @property
    def label(self) -> str:
        """The name on command lines and in metrics: raw, zstd, int8-block."""
        return self.name.lower().replace("_", "-")


class Scaling(enum.Enum):
    """What a tensor's numbers are; the value is the number in the schema."""

    SCHEDULER = 1
    UNIT_NOISE = 2
    PREDICTION = 3
    EMBEDDING = 4


class Source(enum.Enum):
    """Where a step's prediction came from; the value is the number in the schema."""

    CLOUD = 1
    EXTRAPOLATED = 2
    EDGE = 3

    @property
    def letter(self) -> str:
        """The letter in a report's `step_sources`."""
        return {Source.CLOUD: "C", Source.EXTRAPOLATED: "x", Source.EDGE: "e"}[self]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the cloud does with each step before the handoff.

    Attributes:
        num_inference_steps: Steps of the whole trajectory, cloud and edge together.
        handoff_step: First step that the edge model runs, 0-based; `num_inference_steps` means never.
        refresh: Name of the refresh policy, which says what the next fields mean (`orchestrator.refresh`).
        warmup_steps: Real evaluations at the start (p of EC-Diff).
        skip_interval: Extrapolated steps between two real ones (k of EC-Diff): so many with `fixed`, at most
            so many with a policy that adapts or grows.
        predictor: Name of the predictor, of those that the cloud's description lists.
        smoothing: a of EC-Diff; predictor `ecdiff` only.
        tolerance: What a policy that adapts lets its measure reach; 0 makes every step real.
        final_steps: How many of `num_inference_steps` at the end are never extrapolated; behind a handoff they
            are the edge's.
        real_steps: `listed` only: the steps to evaluate, rising. Those from the handoff step on are not run.
        max_cloud_calls: Hard bound on real evaluations up to the handoff; None for none.
    """

    num_inference_steps: int
    handoff_step: int
    refresh: str = "always"
    warmup_steps: int = 2
    skip_interval: int = 0
    predictor: str = "reuse"
    smoothing: float = 0.0
    tolerance: float = 0.0
    final_steps: int = 0
    real_steps: tuple[int, ...] = ()
    max_cloud_calls: int | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {self.num_inference_steps}")
        if not 0 <= self.handoff_step <= self.num_inference_steps:
            raise ValueError(
                f"handoff_step must lie in 0..{self.num_inference_steps} "
                f"(the step count means never), not {self.handoff_step}"
            )
        if self.warmup_steps < MIN_WARMUP_STEPS:
            raise ValueError(
                f"warmup_steps must be at least {MIN_WARMUP_STEPS} (a gradient needs two), not {self.warmup_steps}"
            )
        for name in ("skip_interval", "final_steps", "max_cloud_calls"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0.0 <= self.smoothing <= 10.0:
            raise ValueError(f"smoothing must lie in 0..10, not {self.smoothing}")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0, not {self.tolerance}")
        self._check_real_steps()

    def _check_real_steps(self) -> None:
        if any(later <= earlier for earlier, later in pairwise(self.real_steps)):
            raise ValueError("real_steps must rise from step to step")
        for step in self.real_steps[:1] + self.real_steps[-1:]:
            if not 0 <= step < self.num_inference_steps:
                raise ValueError(f"real_steps must lie in 0..{self.num_inference_steps - 1}, not {step}")


@dataclass(frozen=True, kw_only=True)
class PromptText:
    """The prompt as text; the cloud encodes it."""

    prompt: str
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptEmbeds:
    """The prompt as embeddings `[1, L, D]`; the negative ones are absent without guidance."""

    prompt_embeds: Array
    negative_prompt_embeds: Array | None = None


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


# ------------------------------------------------------------------------------ client -> server


Start = Seed | Noise | State
"""Where a trajectory starts."""


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
class Close:
    """The client is done; the session can go."""


@dataclass(frozen=True, kw_only=True)
class Ping:
    """In-stream probe."""

    t0: float


ClientMessage: TypeAlias = Open | Credit | HandOff | Correct | Close | Ping


# ------------------------------------------------------------------------------ server -> client


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model as the other end needs to know it.

    Fingerprints are hex digests of configuration and weights; `vae_scale_factor` is picture pixels
    per latent pixel, `vae_scaling_factor` and `vae_shift_factor` map VAE latents to scheduler latents.
    """

    name: str
    fingerprint: str
    family: str
    prediction_type: str
    latent_channels: int
    layout: str
    vae_scale_factor: int
    vae_scaling_factor: float
    vae_shift_factor: float
    vae_fingerprint: str
    text_encoder_fingerprint: str
    scheduler_class: str
    scheduler_config: str
    default_height: int
    default_width: int
    num_parameters: int
    dtype: str
    device: str


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


ServerMessage: TypeAlias = Opened | Step | HandedOff | Correction | Finished | Heartbeat | Pong


# ----------------------------------------------------------------------------------------- unary


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The caps of a service; a request above one of them is refused with LimitExceeded."""

    max_num_inference_steps: int = 1000
    max_height: int = 2048
    max_width: int = 2048
    max_num_images: int = 8
    max_prompt_chars: int = 2000
    max_tensor_bytes: int = 64 * 2**20
    max_sessions: int = 16


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy a service is; `step_seconds` is a moving average of one real evaluation, 0 before the first."""

    sessions: int = 0
    queue: int = 0
    step_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Description:
    """The answer to Describe."""

    model: ModelDescription
    limits: Limits
    load: Load
    schedulers: tuple[str, ...]
    predictors: tuple[str, ...]
    codecs: tuple[Codec, ...]
    version: str
    protocol_version: int = PROTOCOL_VERSION
