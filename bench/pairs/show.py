"""The tables of docs/model-pairs.md, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

GIB, KIB = 2**30, 2**10


def tables(results: dict[str, Any]) -> dict[str, list[str]]:
    """Return each table's lines by its name."""
    models, pairs = results["models"], results["pairs"]
    return {
        "memory": _table(
            ["pair", "cloud: network", "text encoders", "edge: network", "text encoders", "VAE", "edge in all",
             "with `--text-encoder cloud`"],
            [_memory(name, models[pair["cloud"]], models[pair["edge"]]) for name, pair in pairs.items()],
        ),
        "wire": _table(
            ["pair", "default size", "latents", "raw", *(f"`{codec}`" for codec in results["codecs"])],
            [_wire(name, pair) for name, pair in pairs.items()],
        ),
        "parameters": _table(
            ["model", "network, counted", "its makers say", "licence"],
            [
                [f"`{hub_id}`", f"{each['network']['parameters']:,}", _said(each["said_parameters"]), each["licence"]]
                for hub_id, each in models.items()
            ],
        ),
        "options": _table(
            ["pair", "EC-Diff's parameters for 50 DDIM steps", "warnings"],
            [[name, _options(pair), "<br>".join(pair["warnings"]) or "none"] for name, pair in pairs.items()],
        ),
    }  # fmt: skip


def _table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _memory(name: str, cloud: dict[str, Any], edge: dict[str, Any]) -> list[str]:
    without = edge["network"]["bytes"] + edge["vae"]["bytes"]
    sizes = [cloud["network"]["bytes"], cloud["text_encoders"]["bytes"]]
    sizes += [edge[part]["bytes"] for part in ("network", "text_encoders", "vae")]
    return [name, *map(_gib, [*sizes, without + edge["text_encoders"]["bytes"], without])]


def _wire(name: str, pair: dict[str, Any]) -> list[str]:
    height, width, frames = pair["default_size"]
    size = f"{height} x {width}" + (f", {frames} frames" if frames else "")
    shape = " x ".join(map(str, pair["latents_shape"][1:]))
    return [name, size, shape, *(f"{number / KIB:,.0f} KiB" for number in pair["latents_bytes"].values())]


def _options(pair: dict[str, Any]) -> str:
    if pair["paper"] is None:
        return "none published: a search is needed"
    return "`" + " ".join(f"--{name} {value:g}" for name, value in pair["paper"].items()) + "`"


def _gib(number: int) -> str:
    return f"{number / GIB:.2f}"


def _said(number: float) -> str:
    return f"{number / 1e9:g} billion"
