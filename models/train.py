"""Command line of the recipe: `python -m models.train STAGE --out DIR`.

Stages hand over through folders in DIR: `vae`, `tokenizer`, `text_encoder`, `cloud_unet`, `edge_unet`, `scorer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from models import PAIR_DIR
from models.autoencoder import make_autoencoder
from models.captions import caption_corpus
from models.data import DEFAULT_GROUPS, DEFAULT_STYLES, Icons, cache_option, load_icons
from models.export import describe_pair, export_pair
from models.icon_sets import STYLES
from models.loop import LoopConfig, Trainer, replace_path
from models.scorer import Scorer
from models.tasks import DecoderTask, DenoiserTask, ScorerTask, as_tensor
from models.text import make_text_encoder, train_tokenizer
from models.unets import TEXT_WIDTH, make_cloud_unet, make_edge_unet

OUT_DIR = Path(__file__).resolve().parent / "runs" / "pair"
PARTS = {  # folder -> the stage that makes it
    "vae": "autoencoder",
    "tokenizer": "cloud",
    "text_encoder": "cloud",
    "cloud_unet": "cloud",
    "edge_unet": "edge",
    "scorer": "scorer",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one training command works with.

    Attributes:
        config: Budget and working folder.
        every_icon: The whole archive.
        icons: Those of the chosen styles and groups.
        sheet_pictures: How many pictures a sample sheet shows.
    """

    config: LoopConfig
    every_icon: Icons
    icons: Icons
    sheet_pictures: int

    @classmethod
    def start(cls, name: str, options: dict[str, Any], **settings: Any) -> Stage:
        """Read the options of a command, and load its icons.

        Raises:
            click.UsageError: If an option cannot be met.
        """
        styles, groups, cache_dir = (options.pop(key) for key in ("styles", "groups", "cache_dir"))
        threads, sheet_pictures = (options.pop(key) for key in ("threads", "sheet_pictures"))
        if (options["minutes"] is None) == (options["num_steps"] is None):
            raise click.UsageError("say how long to train: --minutes M or --steps N, one of them")
        if options["device"] == "cuda" and not torch.cuda.is_available():
            raise click.UsageError("PyTorch sees no CUDA device here; train with --device cpu")
        if threads:
            torch.set_num_threads(threads)
        every_icon = load_icons(cache_dir=cache_dir)
        icons = every_icon.select(
            styles=_words("--styles", styles, set(STYLES)),
            groups=None if groups == "all" else _words("--groups", groups, set(every_icon.groups)),
        )
        # Every CPU runs bfloat16, but only those that multiply it natively gain.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # not in every release
        native = options["device"] == "cuda" or supported()
        config = LoopConfig(stage=name, bfloat16=native, **options, **settings)
        config.out_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        return cls(config=config, every_icon=every_icon, icons=icons, sheet_pictures=sheet_pictures)

    def tokenizer(self) -> CLIPTokenizer:
        """Load the tokenizer, learned from every caption the first time."""
        folder = self.config.out_dir / "tokenizer"
        if not folder.is_dir():
            replace_path(folder, train_tokenizer(caption_corpus(self.every_icon)).save_pretrained)
        return CLIPTokenizer.from_pretrained(folder)


def stage_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options that every training stage takes; `Stage.start` reads them."""
    options = [
        click.option("--out", "out_dir", type=click.Path(path_type=Path), default=OUT_DIR, help="Working folder."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice."),
        click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Budget, over all resumed runs."),
        click.option("--steps", "num_steps", type=click.IntRange(1), help="Optimiser steps, instead of --minutes."),
        click.option("--batch-size", type=int, default=64, show_default=True),
        click.option("--learning-rate", type=float, default=6e-4, show_default=True),
        click.option("--styles", default=",".join(DEFAULT_STYLES), help="Icon sets.", show_default=True),
        click.option("--groups", default=",".join(DEFAULT_GROUPS), help="Unicode groups, or all.", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--sheet-pictures", type=int, default=24, show_default=True, help="On a sample sheet."),
        cache_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _words(option: str, text: str, known: set[str]) -> tuple[str, ...]:
    words = tuple(text.split(","))
    if unknown := set(words) - known:
        raise click.UsageError(f"{option}: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return words


def part_path(out_dir: Path, name: str) -> Path:
    """Return the folder of a part.

    Raises:
        click.ClickException: If the stage that makes it has not run.
    """
    if not (out_dir / name).is_dir():
        raise click.ClickException(f"{out_dir / name} is missing: run python -m models.train {PARTS[name]} first")
    return out_dir / name


@click.group()
def main() -> None:
    """Train and export the bundled pair; every stage resumes where it was stopped.

    In this order: autoencoder, cloud, edge, scorer, export. Then look at it with python -m bench.pair.
    """


@main.command()
@stage_options
def autoencoder(**options: Any) -> None:
    """Fit the linear encoder once, then train the decoder."""
    stage = Stage.start("autoencoder", options)
    vae_dir = stage.config.out_dir / "vae"
    if not vae_dir.is_dir():  # latents exist before the decoder is good
        replace_path(vae_dir, make_autoencoder(as_tensor(stage.icons.select(held_out=False))).save_pretrained)
    vae = AutoencoderTiny.from_pretrained(vae_dir)
    vae.encoder.requires_grad_(False)
    task = DecoderTask(vae, stage.icons, sheet_pictures=stage.sheet_pictures, device=stage.config.device)
    Trainer(task, stage.config).run()


@main.command()
@stage_options
@click.option(
    "--text-share",
    type=click.FloatRange(0, 1),
    default=1.0,
    help="Share of the budget that the text encoder learns for.",
)
def cloud(text_share: float, **options: Any) -> None:
    """Train the text encoder and the cloud UNet together.

    With --text-share below 1 the text encoder stands still from then on, and the edge can start beside the rest.
    A larger budget in a later run lets it learn again: then train the edge anew.
    """
    stage = Stage.start("cloud", options, learning_share={"text_encoder": text_share})
    tokenizer = stage.tokenizer()
    _train_denoiser(
        stage, "cloud_unet", make_cloud_unet(), make_text_encoder(tokenizer, width=TEXT_WIDTH), train_text=True
    )


@main.command()
@stage_options
@click.option("--distil/--no-distil", default=False, help="Learn from the cloud UNet's predictions.")
def edge(distil: bool, **options: Any) -> None:
    """Train the edge UNet on the cloud's text encoder as it stands, which stays fixed."""
    stage = Stage.start("edge", options)
    text_encoder = CLIPTextModel.from_pretrained(part_path(stage.config.out_dir, "text_encoder"))
    guide = UNet2DConditionModel.from_pretrained(part_path(stage.config.out_dir, "cloud_unet")) if distil else None
    _train_denoiser(stage, "edge_unet", make_edge_unet(), text_encoder, train_text=False, guide=guide)


@main.command()
@stage_options
def scorer(**options: Any) -> None:
    """Train the image and text encoder that judges the pair, on all groups whatever --groups says."""
    stage = Stage.start("scorer", options)
    tokenizer = stage.tokenizer()
    icons = stage.every_icon.select(styles=tuple(set(stage.icons.styles)))
    task = ScorerTask(
        Scorer(len(tokenizer)), tokenizer, icons, sheet_pictures=stage.sheet_pictures, device=stage.config.device
    )
    Trainer(task, stage.config).run()


@main.command()
@click.option("--out", "out_dir", type=click.Path(path_type=Path), default=OUT_DIR, help="Working folder.")
@click.option("--pair", "pair_dir", type=click.Path(path_type=Path), default=PAIR_DIR, help="Where the pair goes.")
def export(out_dir: Path, pair_dir: Path) -> None:
    """Write both pipelines and the scorer as diffusers folders, and print sizes and step times."""
    for name in PARTS:
        part_path(out_dir, name)
    export_pair(out_dir, pair_dir)
    click.echo(describe_pair(pair_dir))


def _train_denoiser(
    stage: Stage, name: str, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, **settings: Any
) -> None:
    task = DenoiserTask(
        name,
        unet,
        text_encoder,
        stage.tokenizer(),
        AutoencoderTiny.from_pretrained(part_path(stage.config.out_dir, "vae")),
        stage.icons,
        sheet_pictures=stage.sheet_pictures,
        device=stage.config.device,
        **settings,
    )
    Trainer(task, stage.config).run()


if __name__ == "__main__":
    main()
