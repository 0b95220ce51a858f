"""The raw batched forward of the large model: what is left of it in the service is the service's cost.

`python -m bench.throughput.forward` is a process of its own, with one thread as the service has. It reads batch sizes
as JSON lists, a line each, and answers each line with the guided evaluations per second at those sizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence

import click
import torch

from diffusion.compiled import compiled_sizes
from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair

# Of all passes together, as the service is measured: a median would leave out when the machine was slow.
_MIN_SECONDS = 3.0


class RawForward:
    """A running process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def rates(self, batch_sizes: Sequence[int]) -> dict[int, float]:
        """Return the guided evaluations per second at each batch size, over a few seconds from now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(batch_sizes)).encode() + b"\n")
        answer = await self._process.stdout.readline()
        return {int(size): float(rate) for size, rate in json.loads(answer).items()}


@contextlib.asynccontextmanager
async def raw_forward(*, max_batch: int, compile_steps: bool) -> AsyncIterator[RawForward]:
    """Start the process; end it after. Compiled, it holds what a service with that `max_batch` would."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "bench.throughput.forward"),
        *(["--compile", str(max_batch)] if compile_steps else []),
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield RawForward(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


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
    started, num_passes = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < _MIN_SECONDS:
        model.evaluate(evaluations)[-1].sum().item()  # a GPU answers before it is done; a number has to wait
        num_passes += 1
    return seconds / num_passes


@click.command()
@click.option("--compile", "max_batch", type=click.IntRange(1), help="Compile the model first, for batches up to this.")
def main(max_batch: int | None) -> None:
    """Measure the raw batched forward at the batch sizes that stdin asks for, JSON to JSON, line by line."""
    model = load_model(str(bundled_pair().cloud), device="auto", dtype="auto")
    with torch.inference_mode():
        if max_batch is not None:
            model.compile(compiled_sizes(2 * max_batch), on_size=lambda num_rows, seconds: None)
        for line in sys.stdin:
            rates = {size: size / _pass_seconds(model, size) for size in json.loads(line)}
            print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    main()
