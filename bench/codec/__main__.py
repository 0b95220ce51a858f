"""What the codecs do to real latents, and to the pictures: `python -m bench.codec`.

1. Latents of every step of real generations of the bundled pair, in each dtype that travels, a picture and all prompts
   in a tensor: wire bytes over raw bytes, signal to noise, milliseconds to encode and decode, and the bandwidth below
   which the codec gains more time than it takes.
2. Whole generations through a real service with each codec, in the modes that hand latents over: how far the final
   latents and the pictures are from those of `raw`, and what its tensors took on the stream. A lossless codec has to
   change no bit.

With `--video` both on a tiny CogVideoX pair, at 25 frames of 240 x 352. Its weights are random, so its latents are a
sampler's, not a video's: what the codecs do to real latents is what is measured without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import click

from bench.codec.pictures import compare_pictures
from bench.codec.show import plot, print_tables
from bench.codec.tensors import latents_of_every_step, measure_tensors
from bench.codec.videos import video_pair
from bench.machine import RESULTS, write_results
from diffusion.loading import load_model
from edge_client.request import GenerationRequest
from models import ModelPair, bundled_pair, read_prompts


@click.command()
@click.option("--num-prompts", type=click.IntRange(1), default=16, show_default=True, help="Of the report prompts.")
@click.option("--video", is_flag=True, help="Latents of a tiny CogVideoX pair instead of the bundled one's pictures.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(num_prompts: int, video: bool, output: Path) -> None:
    """Measure every codec on real latents, and on pictures made with it."""
    with video_pair() if video else contextlib.nullcontext(bundled_pair()) as pair:
        results = _measure(pair, read_prompts("report")[: 2 if video else num_prompts], video=video)
    print_tables(results)
    path = write_results("codec-video" if video else "codec", results, output)
    plot(results, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if any(row["lossless"] and row["latents_error"] for row in results["pictures"]):
        raise SystemExit("error: a lossless codec changed a picture")


def _measure(pair: ModelPair, prompts: list[str], *, video: bool) -> dict[str, Any]:
    guidance_scale = load_model(pair.cloud).info.default_guidance_scale
    trajectory = latents_of_every_step(prompts, pair, guidance_scale=guidance_scale)
    return {
        "what": "random-weight CogVideoX, 25 frames of 240 x 352" if video else "the bundled pair",
        "num_prompts": len(prompts),
        "default_codec": GenerationRequest(prompt="any").latents_codec,
        "tensors": measure_tensors(trajectory, {1} if video else {1, len(prompts)}),
        "pictures": asyncio.run(compare_pictures(prompts, pair if video else None)),
    }


if __name__ == "__main__":
    main()
