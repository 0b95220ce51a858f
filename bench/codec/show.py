"""The tables and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.codec.tensors import DTYPES
from bench.machine import machine_line
from wire.messages import Codec


def print_tables(results: dict[str, Any]) -> None:
    """Print what the codecs do to tensors, then to pictures."""
    console = Console(width=140)
    title = f"latents of {results['what']}, every step; {machine_line()}"
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
    table = Table(title="what is made with it, against what is made with raw", title_justify="left")
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


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the ratio of every step, and the pictures of the lossy codecs."""
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
    title = f"Latents of {results['what']}, {results['num_prompts']} prompts"
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
    in_pictures.set(ylabel="PSNR to what raw makes, dB", title="Made with it (the rest: the same bits)")
    for axis in (by_step, in_pictures):
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.suptitle(f"Codecs ({machine_line()})", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
