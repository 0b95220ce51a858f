"""The raw batched forward of the large model: `python -m bench.throughput.forward` prints it as JSON.

A process of its own, with as many threads as the service gets: what is left of it in the service is the service's cost.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import click
import torch

from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair

BATCH_SIZES = (1, 2, 4, 8, 16)
_MIN_SECONDS = 4.0
_MIN_PASSES = 8


def measure(batch_sizes: tuple[int, ...] = BATCH_SIZES, *, compile_steps: bool = False) -> dict[int, float]:
    """Return the guided evaluations per second at each batch size, by the median pass."""
    model = load_model(str(bundled_pair().cloud), device="auto", dtype="auto")
    with torch.inference_mode():
        if compile_steps:
            model.compile([2 * batch_size for batch_size in batch_sizes], on_size=lambda num_rows, seconds: None)
        return {batch_size: batch_size / _pass_seconds(model, batch_size) for batch_size in batch_sizes}


def _pass_seconds(model: Model, batch_size: int) -> float:
    conditioning = model.encode_prompt("red apple, fluent style", guided=True)
    generator = torch.Generator().manual_seed(batch_size)
    shape = model.latents_shape(0, 0, 1)
    evaluations = [
        Evaluation(
            latents=torch.randn(shape, generator=generator).to(model.device, model.dtype),
            timestep=float(20 * index + 1),
            conditioning=conditioning,
            guidance_scale=DEFAULT_GUIDANCE_SCALE,
        )
        for index in range(batch_size)
    ]
    model.evaluate(evaluations)
    seconds: list[float] = []
    while len(seconds) < _MIN_PASSES or sum(seconds) < _MIN_SECONDS:
        started = time.perf_counter()
        model.evaluate(evaluations)[-1].sum().item()  # a GPU answers before it is done; a number has to wait
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@click.command()
@click.option("--compile", "compile_steps", is_flag=True, help="Compile the model first.")
def main(compile_steps: bool) -> None:
    """Measure the raw batched forward and print it as JSON."""
    json.dump(measure(compile_steps=compile_steps), sys.stdout)


if __name__ == "__main__":
    main()
