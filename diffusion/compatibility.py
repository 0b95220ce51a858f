from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from diffusion.scheduler_config import default_scheduler, known_schedulers, parse_scheduler_config, scheduler_for


class Described(Protocol):
    """What the check reads: `ModelInfo`, or the same fields from the other end."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def prediction_type(self) -> str: ...  # noqa: D102
    @property
    def latent_channels(self) -> int: ...  # noqa: D102
    @property
    def layout(self) -> str: ...  # noqa: D102
    @property
    def vae_scale_factor(self) -> int: ...  # noqa: D102
    @property
    def vae_scaling_factor(self) -> float: ...  # noqa: D102
    @property
    def vae_shift_factor(self) -> float: ...  # noqa: D102
    @property
    def vae_fingerprint(self) -> str: ...  # noqa: D102
    @property
    def text_encoder_fingerprint(self) -> str: ...  # noqa: D102
    @property
    def scheduler_class(self) -> str: ...  # noqa: D102
    @property
    def scheduler_config(self) -> str: ...  # noqa: D102
    @property
    def guidance_distilled(self) -> bool: ...  # noqa: D102
    @property
    def default_guidance_scale(self) -> float: ...  # noqa: D102
    @property
    def default_num_frames(self) -> int: ...  # noqa: D102
    @property
    def default_fps(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """Whether two models can share one trajectory.

    Attributes:
        refusal: Why they cannot, one line; None when they can.
        warnings: What differs and may cost quality, one line each, with both values.
        convert: Whether the edge model's predictions must be converted to the cloud's prediction type.
    """

    refusal: str | None
    warnings: tuple[str, ...]
    convert: bool


def check_pair(cloud: Described, edge: Described) -> Compatibility:
    """Compare a cloud and an edge model.

    Different latents are refused; a different prediction type is converted; other differences that can
    cost quality (VAE, text encoder, scheduler) earn a warning.

    Raises:
        ValueError: If a scheduler configuration is malformed.
    """
    for field, meaning in (
        ("family", "model family"),
        ("latent_channels", "latent channels"),
        ("layout", "latent layout"),
        ("vae_scale_factor", "picture pixels per latent pixel"),
    ):
        ours, theirs = getattr(cloud, field), getattr(edge, field)
        if ours != theirs:
            refusal = (
                f"cloud and edge model do not share latents: {meaning} is {ours} in the cloud, {theirs} on the edge"
            )
            return Compatibility(refusal=refusal, warnings=(), convert=False)
    warnings = [
        f"{meaning} differs: cloud {getattr(cloud, field)}, edge {getattr(edge, field)}; {consequence}"
        for field, meaning, consequence in (
            ("vae_scaling_factor", "VAE scaling factor", "the edge decodes with its own"),
            ("vae_shift_factor", "VAE shift factor", "the edge decodes with its own"),
            ("vae_fingerprint", "VAE (fingerprint)", "the edge decodes with its own"),
            ("text_encoder_fingerprint", "text encoder (fingerprint)", "each reads the prompt in its own way"),
        )
        if getattr(cloud, field) != getattr(edge, field)
    ]
    return Compatibility(
        refusal=None,
        warnings=(*warnings, *_scheduler_warnings(cloud, edge)),
        convert=cloud.prediction_type != edge.prediction_type,
    )


def _scheduler_warnings(cloud: Described, edge: Described) -> list[str]:
    # Compared as what the cloud's default scheduler makes of them: the two folders may name different classes
    # for one noise schedule, and older ones leave out keys.
    our_config, their_config = (
        parse_scheduler_config(cloud.scheduler_config),
        parse_scheduler_config(edge.scheduler_config),
    )
    name = default_scheduler(cloud.scheduler_class, our_config)
    class_name, ours = scheduler_for(name, our_config, own_class=cloud.scheduler_class)
    if known_schedulers(edge.scheduler_class, their_config).get(name) != class_name:
        return [
            f"scheduler differs: cloud {_short(cloud.scheduler_class)}, edge {_short(edge.scheduler_class)}; "
            "the cloud's is used for both"
        ]
    theirs = scheduler_for(name, their_config, own_class=edge.scheduler_class)[1]
    return [
        f"scheduler {key} differs: cloud {_short(ours[key])}, edge {_short(theirs[key])}; the cloud's is used for both"
        for key in ours
        if key != "prediction_type" and ours[key] != theirs[key]
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
