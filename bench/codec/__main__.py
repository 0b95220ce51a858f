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
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.intervals import mean_interval
from bench.machine import RESULTS, facts, write_results
from diffusion.loading import load_model
from edge_client import EdgeClient, GenerationResult
from edge_client.request import GenerationRequest
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair, read_prompts
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, make_plan
from wire.codecs import LOSSLESS_CODECS
from wire.messages import Array, Codec, Scaling
from wire.tensors import CodecEvent, TensorSpec, decode_tensor, dtype_of, encode_tensor

DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MODES = ("ecdiff", "adaptive")


@click.command()
@click.option("--num-prompts", type=click.IntRange(1), default=16, show_default=True, help="Of the report prompts.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(num_prompts: int, output: Path) -> None:
    """Measure every codec on real latents, and on pictures made with it."""
    prompts = read_prompts("report")[:num_prompts]
    trajectory = _trajectory(prompts)
    results: dict[str, Any] = {
        "num_prompts": num_prompts,
        "default_codec": GenerationRequest(prompt="any").latents_codec,
        "tensors": _all_tensors(trajectory),
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


def _all_tensors(trajectory: list[Array]) -> list[dict[str, Any]]:
    """Return a row a codec, dtype and size: a picture at a time, and all prompts in one tensor."""
    rows: list[dict[str, Any]] = []
    for num_images in sorted({1, len(trajectory[0])}):
        for dtype in DTYPES:
            found = _tensors(trajectory, dtype, num_images)
            raw = next(row for row in found if row["codec"] == Codec.RAW.label)
            rows += [row | {"pays_below_mbit_s": None if row is raw else pays_below_mbit_s(row, raw)} for row in found]
    return rows


def _tensors(trajectory: list[Array], dtype: str, num_images: int) -> list[dict[str, Any]]:
    """Encode and decode the latents of every step as they travel, so many pictures in a tensor; codecs take turns."""
    tallies = {codec: Tally() for codec in Codec}
    for step in trajectory:
        ratios = {codec: Ratio() for codec in Codec}
        for first in range(0, len(step) - num_images + 1, num_images):
            tensor = step[first : first + num_images].astype(DTYPES[dtype])
            for codec, tally in tallies.items():
                tally.add(tensor, codec, ratios[codec])
        for codec, tally in tallies.items():
            tally.ratios.append(ratios[codec].wire_bytes / ratios[codec].raw_bytes)
    raw_bytes = num_images * math.prod(trajectory[0].shape[1:]) * DTYPES[dtype].itemsize
    return [
        {
            "dtype": dtype,
            "codec": codec.label,
            "num_images": num_images,
            "raw_bytes": raw_bytes,
            "wire_bytes": raw_bytes * statistics.fmean(tally.ratios),
            "ratio": statistics.fmean(tally.ratios),
            "ratio_by_step": tally.ratios,
            "snr_db": decibels(tally.signal, tally.noise),
            "encode_ms": 1000 * statistics.median(tally.seconds["encode"]),
            "decode_ms": 1000 * statistics.median(tally.seconds["decode"]),
        }
        for codec, tally in tallies.items()
    ]


@dataclass
class Ratio:
    """Bytes of one step."""

    wire_bytes: int = 0
    raw_bytes: int = 0


@dataclass
class Tally:
    """What one codec did so far."""

    ratios: list[float] = field(default_factory=list)
    noise: float = 0.0
    signal: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})

    def add(self, tensor: Array, codec: Codec, ratio: Ratio) -> None:
        """Send a tensor there and back."""
        message = encode_tensor(tensor, codec=codec, scaling=Scaling.SCHEDULER, observe=self._observe)
        decoded = decode_tensor(message, _spec(tensor, codec), name="latents", observe=self._observe)
        ratio.wire_bytes += len(message.data) + len(message.scales)
        ratio.raw_bytes += tensor.nbytes
        exact = tensor.astype(np.float64)
        self.noise += float(((decoded.astype(np.float64) - exact) ** 2).sum())
        self.signal += float((exact**2).sum())

    def _observe(self, event: CodecEvent) -> None:
        self.seconds[event.operation].append(event.seconds)


def _spec(tensor: Array, codec: Codec) -> TensorSpec:
    return TensorSpec(
        shape=tensor.shape,
        dtypes=frozenset({dtype_of(tensor)}),
        codecs=frozenset({codec}),
        scaling=Scaling.SCHEDULER,
        max_bytes=tensor.nbytes,
    )


def decibels(signal: float, noise: float) -> float | None:
    """Return the ratio of two powers in dB; None without noise."""
    return 10 * math.log10(signal / noise) if noise else None


def pays_below_mbit_s(row: dict[str, Any], raw: dict[str, Any]) -> float | None:
    """Return the bandwidth below which a codec gains more time than it takes, in Mbit/s; None where it takes none.

    Args:
        row: Of a codec, as `_tensors` returns it.
        raw: Of `raw`, the same tensors.
    """
    saved_bits = 8 * (raw["wire_bytes"] - row["wire_bytes"])
    spent_ms = sum(row[name] - raw[name] for name in ("encode_ms", "decode_ms"))
    return max(0.0, saved_bits / spent_ms / 1000) if spent_ms > 0 else None


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
    # Of the same run: how many latents are sent depends on when credits come.
    ratios = [run.report["bytes"]["latents_wire"] / run.report["bytes"]["latents_raw"] for run in runs]
    return {
        "mode": mode,
        "codec": codec.label,
        "lossless": codec in LOSSLESS_CODECS,
        "latents_error": statistics.fmean(errors),
        "latents_error_interval": mean_interval(errors),
        "picture_psnr_db": _psnr(runs, raw),
        "wire_ratio": statistics.fmean(ratios),
    }


def _psnr(runs: list[GenerationResult], raw: list[GenerationResult]) -> float | None:
    """Return the peak signal to noise of all pictures together; None where they are the same."""
    pairs = zip(runs, raw, strict=True)
    return psnr_db([(np.asarray(run.images[0]), np.asarray(other.images[0])) for run, other in pairs])


def psnr_db(pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> float | None:
    """Return the peak signal to noise in dB of pictures in pairs, from the mean squared error of all of them."""
    squared = [float(((picture.astype(np.float64) - wanted) ** 2).mean()) for picture, wanted in pairs]
    return decibels(255.0**2, statistics.fmean(squared))


def _print(results: dict[str, Any]) -> None:
    machine, console = facts(), Console(width=140)
    title = f"real latents, every step; {machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']}"
    table = Table(title=title, title_justify="left")
    columns = ("dtype", "codec", "pictures", "raw bytes", "wire bytes", "wire / raw", "signal to noise", "encode ms")
    for name in (*columns, "decode ms", "pays below Mbit/s"):
        table.add_column(name, justify="left" if name in ("dtype", "codec") else "right")
    for row in results["tensors"]:
        noise, pays_below = row["snr_db"], row["pays_below_mbit_s"]
        table.add_row(
            row["dtype"],
            row["codec"],
            str(row["num_images"]),
            str(row["raw_bytes"]),
            f"{row['wire_bytes']:.0f}",
            f"{row['ratio']:.3f}",
            "exact" if noise is None else f"{noise:.1f} dB",
            f"{row['encode_ms']:.3f}",
            f"{row['decode_ms']:.3f}",
            "" if pays_below is None else f"{pays_below:.0f}",
            end_section=row["codec"] == list(Codec)[-1].label,
        )
    console.print(table)
    table = Table(title="pictures made with it, against those with raw", title_justify="left")
    for name in ("mode", "codec", "error of the final latents", "picture", "wire / raw"):
        table.add_column(name, justify="left" if name in ("mode", "codec") else "right")
    for row in results["pictures"]:
        low, high = row["latents_error_interval"]
        psnr = row["picture_psnr_db"]
        table.add_row(
            row["mode"],
            row["codec"],
            f"{row['latents_error']:.5f} ({low:.5f}-{high:.5f})" if row["latents_error"] else "the same bits",
            f"{psnr:.1f} dB" if psnr else "the same",
            f"{row['wire_ratio']:.3f}",
            end_section=row["codec"] == list(Codec)[-1].label,
        )
    console.print(table)


def _plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_step, in_pictures) = pyplot.subplots(
        1, 2, figsize=(11, 4.2), width_ratios=(1.7, 1), layout="constrained"
    )
    styles = dict(zip(DTYPES, ("-", "--", ":"), strict=True))
    colours = {codec.label: f"C{index}" for index, codec in enumerate(Codec)}
    for row in results["tensors"]:
        if row["num_images"] == 1:
            ratios, label = row["ratio_by_step"], f"{row['codec']}, {row['dtype']}"
            line = {"linestyle": styles[row["dtype"]], "color": colours[row["codec"]]}
            by_step.plot(range(1, len(ratios) + 1), ratios, label=label, **line)
    title = f"Latents of the bundled pair, one picture, {results['num_prompts']} prompts"
    by_step.set(xlabel="steps done", ylabel="wire bytes / raw bytes", ylim=(0, 1.35), title=title)
    by_step.legend(fontsize=7, ncols=3, loc="upper center")
    lossy = [row for row in results["pictures"] if row["picture_psnr_db"] is not None]
    bars = in_pictures.bar(
        [f"{row['mode']},\n{row['codec']}" for row in lossy],
        [row["picture_psnr_db"] for row in lossy],
        color=[colours[row["codec"]] for row in lossy],
        width=0.5,
    )
    in_pictures.bar_label(bars, fmt="%.1f")
    in_pictures.set(ylabel="PSNR to the pictures with raw, dB", title="Pictures made with it (the rest: the same bits)")
    for axis in (by_step, in_pictures):
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    machine = facts()
    figure.suptitle(f"Codecs ({machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']})", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
