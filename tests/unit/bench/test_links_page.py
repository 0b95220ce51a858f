"""Every figure of docs/links.md is one of the published results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def assert_said(*phrases: str) -> None:
    page = (ROOT / "docs" / "links.md").read_text()
    assert [phrase for phrase in phrases if phrase not in page] == []


def one(rows: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def test_time_splits() -> None:
    splits = results("links")["splits"]
    for link in ("fibre", "dsl", "mobile"):
        connect = one(splits, link=link, variant="ecdiff")["parts"]["connect"]
        faster = [
            one(splits, link=link, variant=name)["faster"] for name in ("ecdiff", "adaptive", "adaptive, error 0.017")
        ]
        assert_said(f"| `{link}` | {ms(connect)} | " + " | ".join(f"{value:.2f}" for value in faster) + " |")
    for link, rtt_seconds in (("dsl", 0.04), ("mobile", 0.15)):
        connect = one(splits, link=link, variant="adaptive")["parts"]["connect"]
        assert round(connect / rtt_seconds, 1) in (3.6, 3.7)
    ecdiff, adaptive = (one(splits, link="mobile", variant=name)["parts"] for name in ("ecdiff", "adaptive"))
    assert_said(f"{ms(adaptive['network'])}, against {ms(ecdiff['network'])}")
    assert_said(f"({adaptive['cloud_compute'] / ecdiff['cloud_compute']:.2f} of `ecdiff`'s)")


def test_freshness() -> None:
    rows = results("links")["freshness"]
    for link, size in (("dsl", "128 KiB"), ("mobile", "128 KiB"), ("mobile", "8 KiB")):
        gated, free = (one(rows, link=link, size=size, with_credits=credits) for credits in (True, False))
        ages = gated["age_max_seconds"], free["age_max_seconds"]
        pings = f"{ms(gated['ping_max_seconds'])}, {ms(free['ping_max_seconds'])}"
        assert_said(f"| `{link}` | {size} | {ms(ages[0])} | {ms(ages[1])} | {ages[1] / ages[0]:.1f} | {pings} |")
        if size == "8 KiB":
            assert_said(
                f"{ages[0] / ages[1]:.1f} times as old", f"{gated['num_latents']} of {free['num_latents']} come"
            )
    fibre = [one(rows, link="fibre", size="128 KiB", with_credits=credits) for credits in (True, False)]
    assert_said("({} against {})".format(*(ms(row["age_max_seconds"]) for row in fibre)))


def test_decisions() -> None:
    rows = [row for row in results("links")["decisions"] if row["link"] == "mobile"]
    judged = [row for row in rows if row["num_images"] == 1]
    oldest = max(judged, key=lambda row: row["round_trips"])
    others = max(row["round_trips"] for row in judged if row["decision"] != "correction")
    assert oldest["decision"] == "correction"
    assert oldest["round_trips"] < results("links")["bound_round_trips"]
    assert_said(f"The oldest of all was {oldest['round_trips']:.2f} round trips (a correction)")
    assert_said(f"of agreement and handoff {others:.2f}:")
    agreement, correction = (
        [one(rows, num_images=number, decision=decision)["round_trips"] for number in (4, 8)]
        for decision in ("agreement", "correction")
    )
    assert_said(f"was {agreement[0]:.2f} round trips, with 64 KiB", f"(8 pictures) {agreement[1]:.2f},")
    assert_said("took {:.2f} and {:.2f}".format(*correction))


def codec_line(row: dict[str, Any]) -> str:
    """Return a codec's line of a table."""
    noise = "exact" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB"
    pays = "" if row["pays_below_mbit_s"] is None else f"{row['pays_below_mbit_s']:.0f} Mbit/s "
    times = f"{row['encode_ms']:.3f} ms | {row['decode_ms']:.3f} ms"
    return f"| `{row['codec']}` | {row['ratio']:.3f} | {noise} | {times} | {pays}|"


def test_codecs() -> None:
    tensors, pictures = results("codec")["tensors"], results("codec")["pictures"]
    for codec in ("raw", "zstd", "int8-block", "int8-delta"):
        assert_said(codec_line(one(tensors, codec=codec, dtype="float32", num_images=1)))
    saved = [
        f"{100 * (1 - one(tensors, codec='zstd', dtype=dtype, num_images=1)['ratio']):.0f} % of {dtype}"
        for dtype in ("float32", "float16", "bfloat16")
    ]
    assert_said(f"{', '.join(saved)}.", f"`{results('codec')['default_codec']}` unless it says otherwise")
    ecdiff, adaptive = (one(pictures, mode=mode, codec="int8-block") for mode in ("ecdiff", "adaptive"))
    assert_said(f"{ecdiff['latents_error']:.4f} from those", f"`adaptive`'s {adaptive['latents_error']:.4f};")
    assert_said(f"{ecdiff['picture_psnr_db']:.1f} and {adaptive['picture_psnr_db']:.1f} dB PSNR")
    assert_said(f"{one(tensors, codec='int8-block', dtype='float16', num_images=1)['ratio']:.3f}.")
    assert not any(row["lossless"] and row["latents_error"] for row in pictures)
    delta = [one(pictures, mode=mode, codec="int8-delta")["wire_ratio"] for mode in ("ecdiff", "adaptive")]
    assert_said("`ecdiff` {:.3f} and `adaptive` {:.3f} of raw".format(*delta), f"against {ecdiff['wire_ratio']:.3f}")
    for codec in ("ecdiff", "adaptive"):
        block, made = (one(pictures, mode=codec, codec=name) for name in ("int8-block", "int8-delta"))
        assert made["latents_error"] == pytest.approx(block["latents_error"], rel=0.01)


def test_codecs_of_videos() -> None:
    tensors, videos = results("codec-video")["tensors"], results("codec-video")["pictures"]
    for codec in ("raw", "zstd", "int8-block", "int8-delta"):
        assert_said(codec_line(one(tensors, codec=codec, dtype="float32", num_images=1)))
    block, delta = (one(videos, mode="ecdiff", codec=name) for name in ("int8-block", "int8-delta"))
    assert_said(f"final latents {delta['latents_error']:.4f} from", f"`int8-block` {block['latents_error']:.4f};")
    assert_said(f"all frames are at {delta['picture_psnr_db']:.1f} dB")
    assert_said(f"it takes {delta['wire_ratio']:.3f} of raw, `int8-block` {block['wire_ratio']:.3f}:")
    assert_said(f"about {delta['wire_ratio'] * 2 * 2.2 * 1024:.0f} KiB")
