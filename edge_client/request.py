"""What a user asks for: one generation, checked before anything is started."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from diffusion.compatibility import TEXT_ENCODERS, Described
from diffusion.families import FROM_PICTURES
from diffusion.scheduler_config import (
    SCHEDULERS,
    default_scheduler,
    folded_shift,
    parse_scheduler_config,
    scheduler_for,
)
from edge_client.file_content import InputFile
from edge_client.picture_file import picture_size
from orchestrator.plan import CLOUD_MODES, DEFAULT_MODE, PlanOptions, make_edge_plan, make_plan
from wire.messages import Codec, Limits, Plan

# Which codecs the edge offers for `--latents-codec`, the wanted one first. Lossy ones only when asked for.
CODEC_OFFERS: dict[str, tuple[Codec, ...]] = {
    "raw": (Codec.RAW,),
    "zstd": (Codec.ZSTD, Codec.RAW),
    "int8-block": (Codec.INT8_BLOCK,),
    "int8-delta": (Codec.INT8_DELTA,),
}
# How long a running cloud service may still be loading when it is first asked.
REMOTE_WAIT_SECONDS = 10.0


# The fastest that players and formats agree on.
MAX_FPS = 120


class Size(NamedTuple):
    """Of a batch: `Model.latents_shape` takes these."""

    height: int
    width: int
    num_images: int
    num_frames: int


class Sized(Protocol):
    """A model that knows its own size: `ModelInfo`, or the same fields from the other end."""

    @property
    def default_height(self) -> int: ...  # noqa: D102
    @property
    def default_width(self) -> int: ...  # noqa: D102
    @property
    def default_num_frames(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One generation.

    Attributes:
        prompt: What to draw.
        mode: `cloud`, `edge`, `split`, `ecdiff` or `adaptive`.
        plan_options: Step count and whatever the user fixed of the plan.
        guidance_scale: Classifier-free guidance weight; above 1 it is on. None: the model's, as `for_model` names it.
        guidance_rescale: 0..1, arXiv 2305.08891.
        negative_prompt: What to avoid.
        seed: Picture j draws its noise from `seed + j`.
        height: Picture pixels; None for the model's default.
        width: Picture pixels; None for the model's default.
        num_images: Pictures, or videos, in one batch.
        num_frames: Of a video; None for the model's default.
        fps: Frames a second of a video; None for the model's default.
        scheduler: Name of the update rule; empty: the default of the model's family, as `for_model` names it.
        text_encoder: Who encodes the prompt: `own` (each model with its own), `cloud` or `edge` (for both).
        image: Picture to start from; the strength of `plan_options` says how much of it is drawn anew. None: noise.
        initial_latents: `.npy` file of standard normal noise `[B, C, H, W]` instead of the seed's.
        latents_codec: `raw`, `zstd`, `int8-block` or `int8-delta`.
        decode: Who decodes the final latents, `edge` or `cloud`.
        preview: Whether progress brings pictures of what it will come to.
        plan_file: Searched plans for mode adaptive; None: the bundled ones where they fit.

    Raises:
        ValueError: With the name and the value of whatever does not fit.
    """

    prompt: str
    mode: str = DEFAULT_MODE
    plan_options: PlanOptions = field(default_factory=PlanOptions)
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    seed: int = 0
    height: int | None = None
    width: int | None = None
    num_images: int = 1
    num_frames: int | None = None
    fps: int | None = None
    scheduler: str = ""
    text_encoder: str = "own"
    image: InputFile | None = None
    initial_latents: InputFile | None = None
    latents_codec: str = "zstd"
    preview: bool = False
    decode: str = "edge"
    plan_file: InputFile | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError('the prompt is empty: say what to draw, for example "red apple, fluent style"')
        self._check_text("prompt")
        self._check_text("negative_prompt")
        for name, low, high in (("guidance_scale", 0.0, 100.0), ("guidance_rescale", 0.0, 1.0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must lie in {low:g}..{high:g}, not {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0..2^63-1, not {self.seed}")
        # The caps of a cloud hold for the edge too: far above them no machine has the memory.
        for name, cap in (
            ("num_images", Limits.max_num_images),
            ("num_frames", Limits.max_num_frames),
            ("fps", MAX_FPS),
            ("height", Limits.max_height),
            ("width", Limits.max_width),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= cap:
                raise ValueError(f"{name} must lie in 1..{cap}, not {value}")
        if self.scheduler not in ("", *SCHEDULERS):
            raise ValueError(f"unknown scheduler {self.scheduler!r}; choose one of {', '.join(SCHEDULERS)}")
        if self.text_encoder not in TEXT_ENCODERS:
            raise ValueError(f"unknown text encoder {self.text_encoder!r}; choose one of {', '.join(TEXT_ENCODERS)}")
        if self.text_encoder == "cloud" and not self.uses_cloud:
            raise ValueError(f"mode {self.mode} uses no cloud that could encode the prompt: leave --text-encoder out")
        if self.decode not in ("edge", "cloud"):
            raise ValueError(f"decode must be edge or cloud, not {self.decode!r}")
        if self.decode == "cloud" and not self.uses_cloud:
            raise ValueError(f"mode {self.mode} uses no cloud that could decode: leave --decode out")
        if self.latents_codec not in CODEC_OFFERS:
            raise ValueError(f"unknown codec {self.latents_codec!r}; choose one of {', '.join(CODEC_OFFERS)}")
        if (self.image is None) != (self.plan_options.strength is None):
            raise ValueError(
                "--image and --strength go together: a picture to start from, and how much of it is drawn anew"
            )
        if self.plan_file is not None:
            if self.mode != "adaptive":
                raise ValueError(f"--plan belongs to mode adaptive, not to {self.mode}")
            if self.plan_options.by_hand:
                raise ValueError("--plan is a whole plan: leave the options out that make one by hand")
        _ = self.plan
        if self.plan_options.by_hand or self.plan_options.corrections != "planned":
            make_edge_plan(self.mode, self.plan_options)

    def _check_text(self, name: str) -> None:
        text = getattr(self, name)
        if len(text) > Limits.max_prompt_chars:
            raise ValueError(f"{name} has {len(text)} characters; at most {Limits.max_prompt_chars} are allowed")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not UTF-8 text: {text!a}") from None

    def for_model(self, model: Described) -> GenerationRequest:
        """Return the request for the model that drives the trajectory, which names what was left to it.

        That is the scheduler, the guidance scale, a video's length and speed, and the size of what starts from a
        picture.

        Raises:
            ValueError: The scheduler that was asked for does not run this model, or something was asked for that it
                does not have: frames of pictures, a negative prompt of a guidance-distilled network, a start from a
                picture. Or the picture cannot be used.
            OSError: The picture cannot be read.
        """
        if self.image is not None:
            return self._of_picture_size(self.image, model)._for_model(model)
        return self._for_model(model)

    def _of_picture_size(self, image: InputFile, model: Described) -> GenerationRequest:
        if model.family not in FROM_PICTURES:
            raise ValueError(
                f"{model.name} ({model.family}) starts from no picture, Stable Diffusion and SDXL do: leave "
                "--image and --strength out"
            )
        height, width = picture_size(image, model.vae_scale_factor)
        try:
            return replace(self, height=self.height or height, width=self.width or width)
        except ValueError as error:
            raise ValueError(f"{image} is {height} x {width} pixels, and {error}: give --height and --width") from error

    def _for_model(self, model: Described) -> GenerationRequest:
        if not model.default_num_frames:
            for name in ("num_frames", "fps"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for video models; {model.name} makes pictures: leave it out")
        if model.guidance_distilled:
            for name in ("negative_prompt", "guidance_rescale"):
                if getattr(self, name):
                    raise ValueError(f"{model.name} is guidance-distilled and takes no {name}: leave it out")
        config = parse_scheduler_config(model.scheduler_config)
        name = self.scheduler or default_scheduler(model.scheduler_class, config)
        # Whether there is such a scheduler depends on no size: any will do.
        scheduler_for(name, folded_shift(config, 1), own_class=model.scheduler_class)
        return replace(
            self,
            scheduler=name,
            guidance_scale=model.default_guidance_scale if self.guidance_scale is None else self.guidance_scale,
            num_frames=self.num_frames or model.default_num_frames or None,
            fps=self.fps or model.default_fps or None,
        )

    @cached_property
    def plan(self) -> Plan:
        """The cloud's plan of this mode with these options; for adaptive, the one without a search."""
        return make_plan(self.mode, self.plan_options)

    def size(self, model: Sized) -> Size:
        """Return the size, in pixels; what was not asked for is `model`'s."""
        return Size(
            height=self.height or model.default_height,
            width=self.width or model.default_width,
            num_images=self.num_images,
            num_frames=self.num_frames or model.default_num_frames,
        )

    @property
    def uses_cloud(self) -> bool:
        """Whether the mode needs a cloud service."""
        return self.mode in CLOUD_MODES

    @property
    def guided(self) -> bool:
        """Whether a step evaluates two rows a picture, as in diffusers; of a request that `for_model` returned."""
        return self.weight > 1.0

    @property
    def weight(self) -> float:
        """The guidance scale of a request that `for_model` returned.

        Raises:
            ValueError: It was left to the model, and no model was named yet.
        """
        if self.guidance_scale is None:
            raise ValueError("guidance_scale is the model's, and no model is known yet")
        return self.guidance_scale
