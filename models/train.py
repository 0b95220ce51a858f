"""Command line of the recipe: `python -m models.train STAGE --out DIR`.

Stages hand over through folders in DIR: `vae`, `tokenizer`, `text_encoder`, `cloud_unet`, `edge_unet`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from models import DEFAULT_GUIDANCE_SCALE, PAIR_DIR
from models.assess import assess_pair
from models.autoencoder import make_autoencoder
from models.captions import caption_corpus
from models.data import DEFAULT_GROUPS, DEFAULT_STYLES, STYLES, Icons, load_icons
from models.export import export_pair, measure_pair
from models.loop import LoopConfig, Trainer, replace_path
from models.tasks import DecoderTask, DenoiserTask, as_tensor
from models.text import make_text_encoder, train_tokenizer
from models.unets import TEXT_WIDTH, make_cloud_unet, make_edge_unet

OUT_DIR = Path(__file__).resolve().parent / "runs" / "pair"


def stage_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options that every training stage takes."""
    options = [
        click.option("--out", "out_dir", type=click.Path(path_type=Path), default=OUT_DIR, help="Working folder."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice."),
        click.option("--minutes", type=float, help="Budget in minutes, over all resumed runs."),
        click.option("--steps", "num_steps", type=int, help="Budget in optimiser steps, instead of --minutes."),
        click.option("--batch-size", type=int, default=64, show_default=True),
        click.option("--learning-rate", type=float, default=6e-4, show_default=True),
        click.option("--styles", default=",".join(DEFAULT_STYLES), help=f"Of {', '.join(STYLES)}.", show_default=True),
        click.option("--groups", default=",".join(DEFAULT_GROUPS), help="Unicode groups, or all.", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group()
def main() -> None:
    """Train and export the bundled pair; every stage resumes where it was stopped."""


@main.command()
@stage_options
def autoencoder(styles: str, groups: str, **options: Any) -> None:
    """Fit the linear encoder once, then train the decoder."""
    icons = _icons(styles, groups)
    trained = icons.select(held_out=False)
    config = _config("autoencoder", options)
    torch.manual_seed(config.seed)
    vae_dir = config.out_dir / "vae"
    if not vae_dir.is_dir():  # latents exist before the decoder is good
        replace_path(vae_dir, make_autoencoder(as_tensor(trained)).save_pretrained)
    vae = AutoencoderTiny.from_pretrained(vae_dir)
    vae.encoder.requires_grad_(False)
    Trainer(DecoderTask(vae, trained, icons.select(held_out=True), device=config.device), config).run()


@main.command()
@stage_options
@click.option("--text-share", type=float, default=1.0, help="Share of the budget that the text encoder learns for.")
def cloud(styles: str, groups: str, text_share: float, **options: Any) -> None:
    """Train the text encoder and the cloud UNet together.

    With --text-share below 1 the text encoder stands still from then on, and the edge can start beside the rest.
    """
    config = _config("cloud", options, learning_share={"text_encoder": text_share})
    if not (config.out_dir / "tokenizer").is_dir():
        tokenizer = train_tokenizer(caption_corpus(load_icons()))
        replace_path(config.out_dir / "tokenizer", tokenizer.save_pretrained)
    tokenizer = CLIPTokenizer.from_pretrained(config.out_dir / "tokenizer")
    torch.manual_seed(config.seed)
    task = DenoiserTask(
        "cloud_unet",
        make_cloud_unet(),
        make_text_encoder(tokenizer, width=TEXT_WIDTH),
        tokenizer,
        AutoencoderTiny.from_pretrained(config.out_dir / "vae"),
        _icons(styles, groups).select(held_out=False),
        train_text=True,
        device=config.device,
    )
    Trainer(task, config).run()


@main.command()
@stage_options
@click.option("--distil/--no-distil", default=False, help="Learn from the cloud UNet's predictions.")
def edge(styles: str, groups: str, distil: bool, **options: Any) -> None:
    """Train the edge UNet on the cloud's text encoder as it stands, which stays fixed."""
    config = _config("edge", options)
    torch.manual_seed(config.seed)
    task = DenoiserTask(
        "edge_unet",
        make_edge_unet(),
        CLIPTextModel.from_pretrained(config.out_dir / "text_encoder"),
        CLIPTokenizer.from_pretrained(config.out_dir / "tokenizer"),
        AutoencoderTiny.from_pretrained(config.out_dir / "vae"),
        _icons(styles, groups).select(held_out=False),
        train_text=False,
        guide=UNet2DConditionModel.from_pretrained(config.out_dir / "cloud_unet") if distil else None,
        device=config.device,
    )
    Trainer(task, config).run()


@main.command()
@click.option("--out", "out_dir", type=click.Path(path_type=Path), default=OUT_DIR, help="Working folder.")
@click.option("--pair", "pair_dir", type=click.Path(path_type=Path), default=PAIR_DIR, help="Where the pair goes.")
def export(out_dir: Path, pair_dir: Path) -> None:
    """Write both pipelines as diffusers folders and print their sizes and step times."""
    export_pair(out_dir, pair_dir)
    click.echo(measure_pair(pair_dir))


@main.command()
@click.option("--pair", "pair_dir", type=click.Path(path_type=Path), default=PAIR_DIR, help="The pair to look at.")
@click.option("--guidance-scales", default=str(DEFAULT_GUIDANCE_SCALE), help="Several, with commas between.")
@click.option("--num-prompts", type=int, default=96, show_default=True)
@click.option("--held-out", is_flag=True, help="Ask for what no stage was trained on.")
@click.option("--styles", default=",".join(DEFAULT_STYLES), show_default=True)
@click.option("--groups", default=",".join(DEFAULT_GROUPS), show_default=True)
def assess(pair_dir: Path, guidance_scales: str, num_prompts: int, held_out: bool, styles: str, groups: str) -> None:
    """Print how often the asked-for picture is the nearest one, for both models."""
    scales = tuple(float(scale) for scale in guidance_scales.split(","))
    icons = _icons(styles, groups)
    for line in assess_pair(pair_dir, icons, held_out=held_out, guidance_scales=scales, num_prompts=num_prompts):
        click.echo(line)


def _icons(styles: str, groups: str) -> Icons:
    return load_icons().select(
        styles=tuple(styles.split(",")), groups=None if groups == "all" else tuple(groups.split(","))
    )


def _config(stage: str, options: dict[str, Any], **settings: Any) -> LoopConfig:
    threads = options.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    # Every CPU runs bfloat16, but only those that multiply it natively gain.
    native = torch.cpu._is_avx512_bf16_supported() if options["device"] == "cpu" else True
    return LoopConfig(stage=stage, bfloat16=native, **options, **settings)


if __name__ == "__main__":
    main()
