"""What the codecs do to real latents, and to the pictures: `python -m bench.codec`.

1. Latents of every step of real generations of the bundled pair, in each dtype that travels, a picture and all prompts
   in a tensor: wire bytes over raw bytes, signal to noise, milliseconds to encode and decode, and the bandwidth below
   which the codec gains more time than it takes.
2. Whole generations through a real service with each codec, in the modes that hand latents over: how far the final
   latents and the pictures are from those of `raw`, and what its tensors took on the stream. A lossless codec has to
   change no bit.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from bench.codec.pictures import compare_pictures
from bench.codec.show import plot, print_tables
from bench.codec.tensors import latents_of_every_step, measure_tensors
from bench.machine import RESULTS, write_results
from edge_client.request import GenerationRequest
from models import read_prompts


@click.command()
@click.option("--num-prompts", type=click.IntRange(1), default=16, show_default=True, help="Of the report prompts.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(num_prompts: int, output: Path) -> None:
    """Measure every codec on real latents, and on pictures made with it."""
    prompts = read_prompts("report")[:num_prompts]
    trajectory = latents_of_every_step(prompts)
    results: dict[str, Any] = {
        "num_prompts": num_prompts,
        "default_codec": GenerationRequest(prompt="any").latents_codec,
        "tensors": measure_tensors(trajectory),
        "pictures": asyncio.run(compare_pictures(prompts)),
    }
    print_tables(results)
    path = write_results("codec", results, output)
    plot(results, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if any(row["lossless"] and row["latents_error"] for row in results["pictures"]):
        raise SystemExit("error: a lossless codec changed a picture")


if __name__ == "__main__":
    main()
