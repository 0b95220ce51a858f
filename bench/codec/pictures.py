"""Whole generations with each codec, against those with `raw`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.codec.tensors import decibels
from bench.intervals import mean_interval
from edge_client import EdgeClient, GenerationResult
from models import ModelPair
from wire.codecs import LOSSLESS_CODECS
from wire.messages import Codec

MODES = ("ecdiff", "adaptive")


async def compare_pictures(prompts: list[str], pair: ModelPair | None) -> list[dict[str, Any]]:
    """Return a row a mode and codec: how far its pictures, or videos, are from those with `raw`.

    Args:
        prompts: One generation each.
        pair: Who makes them; None: the bundled one.
    """
    console, rows = Console(stderr=True), []
    cloud_model, edge_model = (None, None) if pair is None else map(str, pair)
    async with EdgeClient(cloud_model=cloud_model, edge_model=edge_model) as client:
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
    return psnr_db([(run.pixels, other.pixels) for run, other in pairs])


def psnr_db(pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> float | None:
    """Return the peak signal to noise in dB of pictures in pairs, from the mean squared error of all of them."""
    squared = [float(((picture.astype(np.float64) - wanted) ** 2).mean()) for picture, wanted in pairs]
    return decibels(255.0**2, statistics.fmean(squared))
