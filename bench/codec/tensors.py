"""What the codecs do to latents: bytes, signal to noise, and the time that they take."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import torch

from diffusion.loading import load_model
from models import ModelPair
from orchestrator.in_process import InProcessPair
from orchestrator.plan import PlanOptions, make_plan
from wire.chain import Chain
from wire.messages import Array, Codec, Scaling
from wire.tensors import CodecEvent, Link, TensorSpec, decode_tensor, dtype_of, encode_tensor

DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def latents_of_every_step(prompts: list[str], paths: ModelPair, *, guidance_scale: float) -> list[Array]:
    """Return the latents after each step of the large model in its layout, one row a prompt, float32."""
    seeds = list(range(len(prompts)))
    latents: list[Array] = []
    with torch.inference_mode():
        pair = InProcessPair(
            load_model(str(paths.cloud)),
            load_model(str(paths.edge)),
            prompts,
            seeds,
            guidance_scale=guidance_scale,
        )
        plan = make_plan("cloud", PlanOptions())
        pair.generate(plan, on_step=lambda result: latents.append(result.latents.float().cpu().numpy().copy()))
    return latents


def measure_tensors(trajectory: list[Array], nums_images: Collection[int]) -> list[dict[str, Any]]:
    """Return a row a codec, dtype and number of pictures, or videos, in a tensor."""
    rows: list[dict[str, Any]] = []
    for num_images in sorted(nums_images):
        for dtype in DTYPES:
            found = _measure_one_kind(trajectory, dtype, num_images)
            raw = next(row for row in found if row["codec"] == Codec.RAW.label)
            rows += [row | {"pays_below_mbit_s": None if row is raw else pays_below_mbit_s(row, raw)} for row in found]
    return rows


def _measure_one_kind(trajectory: list[Array], dtype: str, num_images: int) -> list[dict[str, Any]]:
    """Encode and decode the latents of every step as they travel, so many pictures in a tensor; codecs take turns.

    Each tensor follows the same pictures' of the step before, on a stream of its own.
    """
    tallies = {codec: Tally() for codec in Codec}
    for step in trajectory:
        ratios = {codec: Ratio() for codec in Codec}
        for first in range(0, len(step) - num_images + 1, num_images):
            tensor = step[first : first + num_images].astype(DTYPES[dtype])
            for codec, tally in tallies.items():
                tally.add(tensor, codec, ratios[codec], stream=first)
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
    streams: dict[int, tuple[Chain, Chain]] = field(default_factory=lambda: defaultdict(lambda: (Chain(), Chain())))
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})

    def add(self, tensor: Array, codec: Codec, ratio: Ratio, *, stream: int) -> None:
        """Send a tensor there, on the stream that the one before it took."""
        there, here = (Link(chain=chain, kind="latents") for chain in self.streams[stream])
        message = encode_tensor(tensor, codec=codec, scaling=Scaling.SCHEDULER, link=there, observe=self._observe)
        decoded = decode_tensor(message, _spec(tensor, codec), name="latents", link=here, observe=self._observe)
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
        rank=tensor.ndim,
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
        row: Of a codec, as `_measure_one_kind` returns it.
        raw: Of `raw`, the same tensors.
    """
    saved_bits = 8 * (raw["wire_bytes"] - row["wire_bytes"])
    spent_ms = sum(row[name] - raw[name] for name in ("encode_ms", "decode_ms"))
    return max(0.0, saved_bits / spent_ms / 1000) if spent_ms > 0 else None
