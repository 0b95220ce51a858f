"""How good the bundled pair is: `python -m bench.pair`.

1. PSNR against the real picture that was asked for: what the autoencoder keeps of it, and how near generated ones come.
2. Retrieval: the scorer sees a picture and chooses among the captions of every concept of its style. Asked of real
   pictures (how far the scorer itself can be trusted), of their reconstructions (what the decoder costs), and of what
   the cloud and the edge model make of the captions; of combinations the pair was trained on, and of held-out ones.
   On held-out ones real pictures are no ceiling: the scorer has not seen them either, and knows the usual look better.
3. The distance between generated and real pictures: KID on the scorer's features, not on Inception's.
4. Milliseconds a guided step takes at batch 1 and 8, on one thread and on all.

It writes pair.json and a contact sheet, pair.png. The first time, it fetches the icons (models/icon_sets.py).
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import click
import matplotlib
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.intervals import kernel_distance, share_interval
from bench.machine import RESULTS, facts, write_results
from diffusion.loading import load_model
from diffusion.pipeline_folder import quiet_libraries
from models import DEFAULT_GUIDANCE_SCALE, PAIR_DIR
from models.autoencoder import decode, encode, psnr
from models.captions import plain_caption
from models.data import DEFAULT_GROUPS, Icons, cache_option, load_icons
from models.export import step_milliseconds
from models.scorer import Judge, load_scorer
from models.sheets import generate, images_to_tensor, to_images
from models.tasks import as_tensor
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, make_plan

SPLITS = ("trained", "held-out")
SHEET_COLUMNS = 10
BATCH = 64


@click.command()
@click.option("--pair", "pair_dir", type=click.Path(path_type=Path, exists=True), default=PAIR_DIR, help="The pair.")
@click.option("--num-prompts", type=click.IntRange(4), default=256, show_default=True, help="Captions of each split.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True, help="Denoising steps.")
@click.option("--guidance-scale", type=float, default=DEFAULT_GUIDANCE_SCALE, show_default=True)
@click.option("--groups", default=",".join(DEFAULT_GROUPS), show_default=True, help="What the pair was trained on.")
@click.option("--seed", type=int, default=0, show_default=True)
@cache_option
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(
    pair_dir: Path,
    num_prompts: int,
    steps: int,
    guidance_scale: float,
    groups: str,
    seed: int,
    cache_dir: Path,
    output: Path,
) -> None:
    """Measure the bundled pair: retrieval, KID on the scorer's features, PSNR, step time; and draw a contact sheet."""
    icons = load_icons(cache_dir=cache_dir)
    chosen = tuple(sorted(set(icons.groups))) if groups == "all" else tuple(groups.split(","))
    if unknown := set(chosen) - set(icons.groups):
        there = ", ".join(sorted(set(icons.groups)))
        raise click.UsageError(f"--groups: no {', '.join(sorted(unknown))}; there are {there}")
    known = icons.select(groups=chosen)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    results: dict[str, Any] = {"settings": settings, "splits": {}}
    results["step_ms"] = [
        {"threads": threads, "batch": batch, **step_milliseconds(pair_dir, num_threads=threads, batch_size=batch)}
        for threads in sorted({1, torch.get_num_threads()})
        for batch in (1, 8)
    ]
    judge = Judge(*load_scorer(pair_dir / "scorer"), icons)
    shown = {}
    for split in SPLITS:
        asked = _draw(known, held_out=split == "held-out", count=num_prompts, seed=seed)
        pictures = _make_pictures(pair_dir, asked, settings, split)
        results["splits"][split] = _measure_split(judge, known, asked, pictures)
        shown[split] = (asked, pictures)
    _print(results)
    path = write_results("pair", results, output)
    _draw_sheet(pair_dir, shown, settings, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")


def _draw(icons: Icons, *, held_out: bool, count: int, seed: int) -> Icons:
    """Draw `count` icons of one side of the split, or all of them where there are fewer."""
    side = icons.select(held_out=held_out)
    return side.take(Random(seed).sample(range(len(side)), min(count, len(side))))


def _make_pictures(pair_dir: Path, asked: Icons, settings: dict[str, Any], split: str) -> dict[str, Tensor]:
    """Return `[N, 3, H, W]` in [-1, 1] by source: real, reconstructed, cloud, edge."""
    prompts = [plain_caption(asked, i) for i in range(len(asked))]
    pictures = {"real": as_tensor(asked)}
    for name in ("cloud", "edge"):
        with quiet_libraries():
            pipeline = StableDiffusionPipeline.from_pretrained(pair_dir / name)
        pipeline.set_progress_bar_config(disable=True)
        if name == "cloud":
            with torch.inference_mode():
                decoded = decode(pipeline.vae, encode(pipeline.vae, pictures["real"]))
            pictures["reconstructed"] = decoded.clamp(-1, 1)
        images: list[Image.Image] = []
        with click.progressbar(range(0, len(prompts), BATCH), label=f"{name}, {split}") as starts:
            for start in starts:
                images += generate(
                    pipeline,
                    prompts[start : start + BATCH],
                    guidance_scale=settings["guidance_scale"],
                    num_inference_steps=settings["num_inference_steps"],
                    seed=settings["seed"] + start,
                )
        pictures[name] = images_to_tensor(images)
    return pictures


def _measure_split(judge: Judge, known: Icons, asked: Icons, pictures: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return the figures of each source of pictures."""
    rows = {key: row for row, key in enumerate(judge.icons.keys)}
    wanted = [rows[key] for key in asked.keys]
    asked_keys = set(asked.keys)
    others = [row for row, key in enumerate(known.keys) if key not in asked_keys]
    reference = judge.features(as_tensor(known.take(others)))
    figures = {}
    for source, made in pictures.items():
        ranks, _ = judge.best(made, wanted)
        hits = {top: sum(rank < top for rank in ranks) for top in (1, 5)}
        distance, scatter = kernel_distance(judge.features(made), reference)
        figures[source] = {
            "num_pictures": len(ranks),
            "top1": hits[1] / len(ranks),
            "top1_interval": share_interval(hits[1], len(ranks)),
            "top5": hits[5] / len(ranks),
            "kid_scorer_features": distance,
            "kid_scorer_features_deviation": scatter,
            "psnr_db": None if source == "real" else psnr(made, pictures["real"]),
        }
    return figures


def _print(results: dict[str, Any]) -> None:
    machine = facts()
    title = "{num_inference_steps} steps, guidance {guidance_scale}".format(**results["settings"])
    table = Table(title=f"The pair: {title}; {machine['cpu']}, {machine['date']}", title_justify="left")
    for name in (
        "combinations",
        "pictures",
        "N",
        "top-1",
        "95 % interval",
        "of real",
        "top-5",
        "KID x 1000",
        "PSNR dB",
    ):
        table.add_column(name, justify="left" if name in ("combinations", "pictures") else "right", no_wrap=True)
    for split, sources in results["splits"].items():
        for source, found in sources.items():
            table.add_row(
                split,
                source,
                str(found["num_pictures"]),
                f"{found['top1']:.1%}",
                "{:.0%}-{:.0%}".format(*found["top1_interval"]),
                f"{found['top1'] / max(sources['real']['top1'], 1e-9):.0%}" if split == "trained" else "",
                f"{found['top5']:.1%}",
                f"{1000 * found['kid_scorer_features']:.2f} ± {1000 * found['kid_scorer_features_deviation']:.2f}",
                "" if found["psnr_db"] is None else f"{found['psnr_db']:.1f}",
            )
        table.add_section()
    console = Console(width=120)
    console.print(table)
    for found in results["step_ms"]:
        console.print(
            "guided step, {threads} thread(s), batch {batch}: cloud {cloud:.1f} ms, edge {edge:.1f} ms, "
            "{ratio:.1f} times".format(**found, ratio=found["cloud"] / found["edge"]),
            highlight=False,
        )
    console.print("KID: on the scorer's features, against the real pictures that were not asked for.", highlight=False)


def _draw_sheet(
    pair_dir: Path, shown: dict[str, tuple[Icons, dict[str, Tensor]]], settings: dict[str, Any], path: Path
) -> None:
    """Draw real pictures above those of the cloud, a hybrid and the edge, for the first captions of each split."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cloud, edge = load_model(str(pair_dir / "cloud")), load_model(str(pair_dir / "edge"))
    steps = settings["num_inference_steps"]
    plan = make_plan("ecdiff", PlanOptions(num_inference_steps=steps))
    names = ("real", "cloud", f"ecdiff, handoff\nat {plan.handoff_step} of {steps}", "edge")
    blocks = []
    for split, (asked, pictures) in shown.items():
        count = min(SHEET_COLUMNS, len(asked))
        captions = [plain_caption(asked, i) for i in range(count)]
        seeds = [settings["seed"] + i for i in range(count)]
        pair = InProcessPair(cloud, edge, captions, seeds, guidance_scale=settings["guidance_scale"])
        hybrid = list(edge.decode(pair.generate(plan).latents))
        rows = [to_images(pictures["real"][:count]), to_images(pictures["cloud"][:count]), hybrid]
        blocks.append((split, captions, [*rows, to_images(pictures["edge"][:count])]))
    figure, axes = pyplot.subplots(
        len(blocks) * len(names), SHEET_COLUMNS, figsize=(1.15 * SHEET_COLUMNS + 1, 10.5), layout="constrained"
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for block, (split, captions, rows) in enumerate(blocks):
        for row, (name, images) in enumerate(zip(names, rows, strict=True)):
            line = axes[block * len(names) + row]
            line[0].set_ylabel(f"{split}\n{name}", rotation=0, ha="right", va="center", fontsize=8)
            for axis, image in zip(line, images, strict=False):
                axis.imshow(np.asarray(image), interpolation="lanczos")
        for axis, caption in zip(axes[block * len(names)], captions, strict=False):
            axis.set_title(caption.replace(", ", "\n"), fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
