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
    def prompt_embeds_width(self) -> int: ...  # noqa: D102
    @property
    def pooled_prompt_embeds_width(self) -> int: ...  # noqa: D102
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


TEXT_ENCODERS = ("own", "cloud", "edge")
"""Who encodes the prompt: each its own; the cloud for both; the edge for both, and the text stays there."""
_WHO_READS = {
    None: "each reads the prompt in its own way",
    "own": "each reads the prompt in its own way",
    "cloud": "the edge model is fed the cloud's embeddings",
    "edge": "the cloud model is fed the edge's embeddings",
}


def check_pair(cloud: Described, edge: Described, *, text_encoder: str | None = None) -> Compatibility:
    """Compare a cloud and an edge model.

    Different latents are refused; a different prediction type is converted; other differences that can
    cost quality (VAE, text encoder, scheduler) earn a warning.

    Args:
        cloud: The large one.
        edge: The small one.
        text_encoder: Who encodes the prompt, one of `TEXT_ENCODERS`; None where that is not known yet.

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
            ("text_encoder_fingerprint", "text encoder (fingerprint)", _WHO_READS[text_encoder]),
        )
        if getattr(cloud, field) != getattr(edge, field) != ""
    ]
    unreadable = None if text_encoder is None else _text_encoder_refusal(cloud, edge, text_encoder)
    if unreadable is not None:
        return Compatibility(refusal=unreadable, warnings=(), convert=False)
    return Compatibility(
        refusal=None,
        warnings=(*warnings, *_scheduler_warnings(cloud, edge)),
        convert=cloud.prediction_type != edge.prediction_type,
    )


def _text_encoder_refusal(cloud: Described, edge: Described, text_encoder: str) -> str | None:
    """Return why the prompt cannot be encoded so; None if it can."""
    if text_encoder != "cloud" and not edge.text_encoder_fingerprint:
        return f"the edge model {edge.name} has no text encoder: let the cloud encode the prompt (--text-encoder cloud)"
    ours, theirs = ((model.prompt_embeds_width, model.pooled_prompt_embeds_width) for model in (cloud, edge))
    if text_encoder != "own" and ours != theirs:
        return (
            f"one model cannot be fed the other's embeddings: widths (sequence, pooled) are {ours} in the cloud, "
            f"{theirs} on the edge: let each encode the prompt (--text-encoder own)"
        )
    return None


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
