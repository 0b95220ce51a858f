"""What the codecs do to real latents, and to the pictures: `python -m bench.codec`.

1. Latents of every step of real generations of the bundled pair, in each dtype that travels: wire bytes over raw bytes,
   signal to noise, milliseconds to encode and decode. Lossless codecs are checked bit for bit.
2. Whole generations through a real service with each codec, in the modes that hand latents over: how far the final
   latents and the pictures are from those of `raw`, and what crossed the stream.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.intervals import mean_interval
from bench.machine import RESULTS, facts, write_results
from diffusion.loading import load_model
from edge_client import EdgeClient, GenerationResult
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair, read_prompts
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, make_plan
from wire.codecs import LOSSLESS_CODECS
from wire.messages import Array, Codec, Scaling
from wire.tensors import CodecEvent, TensorSpec, decode_tensor, dtype_of, encode_tensor

DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MODES = ("split", "ecdiff", "adaptive")


@click.command()
@click.option("--num-prompts", type=click.IntRange(1), default=8, show_default=True, help="Of the report prompts.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(num_prompts: int, output: Path) -> None:
    """Measure every codec on real latents, and on pictures made with it."""
    prompts = read_prompts("report")[:num_prompts]
    trajectory = _trajectory(prompts)
    results: dict[str, Any] = {
        "num_prompts": num_prompts,
        "tensors": [_tensors(trajectory, name, codec) for name in DTYPES for codec in Codec],
        "pictures": asyncio.run(_pictures(prompts)),
    }
    _print(results)
    path = write_results("codec", results, output)
    _plot(results, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if any(row["lossless"] and row["latents_error"] for row in results["pictures"]):
        raise SystemExit("error: a lossless codec changed a picture")


def _trajectory(prompts: list[str]) -> list[Array]:
    """Return the latents `[P, C, H, W]` after each step of the large model, float32."""
    paths = bundled_pair()
    seeds = list(range(len(prompts)))
    latents: list[Array] = []
    with torch.inference_mode():
        pair = InProcessPair(
            load_model(str(paths.cloud)),
            load_model(str(paths.edge)),
            prompts,
            seeds,
            guidance_scale=DEFAULT_GUIDANCE_SCALE,
        )
        plan = make_plan("cloud", PlanOptions())
        pair.generate(plan, on_step=lambda result: latents.append(result.latents.float().cpu().numpy().copy()))
    return latents


def _tensors(trajectory: list[Array], dtype: str, codec: Codec) -> dict[str, Any]:
    """Encode and decode each picture's latents at each step, one tensor at a time, as they travel."""
    ratios, noise, signal = [], 0.0, 0.0
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}

    def observe(event: CodecEvent) -> None:
        seconds[event.operation].append(event.seconds)

    for step in trajectory:
        wire_bytes = raw_bytes = 0
        for row in step:
            tensor = row[None].astype(DTYPES[dtype])
            message = encode_tensor(tensor, codec=codec, scaling=Scaling.SCHEDULER, observe=observe)
            spec = TensorSpec(
                shape=tensor.shape,
                dtypes=frozenset({dtype_of(tensor)}),
                codecs=frozenset({codec}),
                scaling=Scaling.SCHEDULER,
                max_bytes=tensor.nbytes,
            )
            decoded = decode_tensor(message, spec, name="latents", observe=observe)
            wire_bytes, raw_bytes = wire_bytes + len(message.data) + len(message.scales), raw_bytes + tensor.nbytes
            exact = tensor.astype(np.float64)
            noise += float(((decoded.astype(np.float64) - exact) ** 2).sum())
            signal += float((exact**2).sum())
        ratios.append(wire_bytes / raw_bytes)
    return {
        "dtype": dtype,
        "codec": codec.label,
        "bytes": math.prod(trajectory[0].shape[1:]) * DTYPES[dtype].itemsize,
        "ratio": statistics.fmean(ratios),
        "ratio_by_step": ratios,
        "snr_db": 10 * math.log10(signal / noise) if noise else None,
        "encode_ms": 1000 * statistics.median(seconds["encode"]),
        "decode_ms": 1000 * statistics.median(seconds["decode"]),
    }


async def _pictures(prompts: list[str]) -> list[dict[str, Any]]:
    console, rows = Console(stderr=True), []
    async with EdgeClient() as client:
        for mode in MODES:
            runs: dict[Codec, list[GenerationResult]] = {}
            for codec in Codec:
                console.print(f"mode {mode}, codec {codec.label}", highlight=False)
                runs[codec] = [
                    await _generate(client, mode, prompt, seed, codec) for seed, prompt in enumerate(prompts)
                ]
            rows += [_compared(mode, codec, runs[codec], runs[Codec.RAW]) for codec in Codec]
    return rows


async def _generate(client: EdgeClient, mode: str, prompt: str, seed: int, codec: Codec) -> GenerationResult:
    # Without the handoff by agreement: where it comes would change with the codec, and hide what the codec does.
    options = {"shadow": False} if mode == "adaptive" else {}
    result = await client.generate(prompt, mode=mode, seed=seed, latents_codec=codec.label, **options)
    if result.report["fallbacks"]:
        raise SystemExit(f"error: {result.report['fallbacks'][0]}; the figures would mean nothing")
    return result


def _compared(mode: str, codec: Codec, runs: list[GenerationResult], raw: list[GenerationResult]) -> dict[str, Any]:
    errors = [
        float(np.linalg.norm(run.latents - other.latents) / np.linalg.norm(other.latents))
        for run, other in zip(runs, raw, strict=True)
    ]
    received = [
        run.report["bytes"]["received"] / other.report["bytes"]["received"]
        for run, other in zip(runs, raw, strict=True)
    ]
    return {
        "mode": mode,
        "codec": codec.label,
        "lossless": codec in LOSSLESS_CODECS,
        "latents_error": statistics.fmean(errors),
        "latents_error_interval": mean_interval(errors),
        "picture_psnr_db": _psnr(runs, raw),
        "received_ratio": statistics.fmean(received),
    }


def _psnr(runs: list[GenerationResult], raw: list[GenerationResult]) -> float | None:
    """Return the peak signal to noise of all pictures together; None where they are the same."""
    squared = [
        float(((np.asarray(run.images[0], np.float64) - np.asarray(other.images[0], np.float64)) ** 2).mean())
        for run, other in zip(runs, raw, strict=True)
    ]
    mean = statistics.fmean(squared)
    return 10 * math.log10(255**2 / mean) if mean else None


def _print(results: dict[str, Any]) -> None:
    machine, console = facts(), Console(width=120)
    title = f"real latents; {machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']}"
    table = Table(title=title, title_justify="left")
    for name in ("dtype", "codec", "raw bytes", "wire / raw", "signal to noise", "encode ms", "decode ms"):
        table.add_column(name, justify="left" if name in ("dtype", "codec") else "right")
    for row in results["tensors"]:
        noise = "exact" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB"
        table.add_row(
            row["dtype"],
            row["codec"],
            str(row["bytes"]),
            f"{row['ratio']:.3f}",
            noise,
            f"{row['encode_ms']:.3f}",
            f"{row['decode_ms']:.3f}",
            end_section=row["codec"] == list(Codec)[-1].label,
        )
    console.print(table)
    table = Table(title="pictures made with it, against those with raw", title_justify="left")
    for name in ("mode", "codec", "error of the final latents", "picture", "received / raw's"):
        table.add_column(name, justify="left" if name in ("mode", "codec") else "right")
    for row in results["pictures"]:
        low, high = row["latents_error_interval"]
        psnr = row["picture_psnr_db"]
        table.add_row(
            row["mode"],
            row["codec"],
            f"{row['latents_error']:.5f} ({low:.5f}-{high:.5f})" if row["latents_error"] else "the same bits",
            f"{psnr:.1f} dB" if psnr else "the same",
            f"{row['received_ratio']:.3f}",
            end_section=row["codec"] == list(Codec)[-1].label,
        )
    console.print(table)


def _plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    styles = dict(zip(DTYPES, ("-", "--", ":"), strict=True))
    colours = dict(zip((codec.label for codec in Codec), ("grey", "tab:blue", "tab:orange"), strict=True))
    for row in results["tensors"]:
        axis.plot(
            range(1, len(row["ratio_by_step"]) + 1),
            row["ratio_by_step"],
            styles[row["dtype"]],
            color=colours[row["codec"]],
            label=f"{row['codec']}, {row['dtype']}",
        )
    axis.set(xlabel="steps done", ylabel="wire bytes / raw bytes", ylim=(0, None), title="Latents of the bundled pair")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
