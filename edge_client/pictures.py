"""Pictures and files: PNG with the generation's parameters, comparison grids, safe writing."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from edge_client.report import Report
from wire.messages import Array

METADATA_KEY = "ecdiff"
TILE_PIXELS = 256
MARGIN_PIXELS = 16
CAPTION_PIXELS = 64
TITLE_PIXELS = 40
MODE_TITLES = {
    "cloud": "cloud only",
    "edge": "edge only",
    "split": "split (Hybrid SD)",
    "ecdiff": "EC-Diff",
    "adaptive": "adaptive",
}


def check_outputs(paths: Sequence[Path]) -> None:
    """Find out before the work starts that a result could not be written after it.

    Raises:
        ValueError: Two of them are one file.
        OSError: A folder is missing or closed, or a path is a folder.
    """
    seen = set()
    for path in paths:
        if path.resolve() in seen:
            raise ValueError(f"{path} is named for two outputs: give each its own file")
        seen.add(path.resolve())
        check_writable(path)


def check_writable(path: Path) -> None:
    """Find out before the work starts that a result could not be written after it.

    Raises:
        OSError: The folder is missing or closed, or the path is a folder.
    """
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write {path}: no permission in {folder}")


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all; if its disk is full, keep the content in the temporary folder.

    Raises:
        OSError: It could not be written there; the text says where the content is instead, if anywhere.
    """
    try:
        _write_atomically(path, write)
    except OSError as error:
        plain = f"cannot write {path}: {error.strerror or error}"
        try:
            kept = _keep(path, write)
        except OSError:
            raise OSError(f"{plain}; free some space and try again") from error
        raise OSError(f"{plain}; it was kept as {kept}") from error


def _keep(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write into the temporary folder, whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
    except OSError:
        Path(name).unlink()
        raise
    return Path(name)


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def image_paths(path: Path, count: int) -> list[Path]:
    """Return `out.png`, or `out-0.png`, `out-1.png`... for more than one picture."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def encode_images(images: Sequence[Image.Image], report: Report) -> list[bytes]:
    """Return PNGs with the report in their metadata (key `ecdiff`), each with its own seed."""
    encoded = []
    for index, image in enumerate(images):
        info = PngInfo()
        info.add_text(METADATA_KEY, json.dumps({**report, "seed": report["seed"] + index}))
        file = io.BytesIO()
        image.save(file, format="PNG", pnginfo=info)
        encoded.append(file.getvalue())
    return encoded


def save_images(pngs: Sequence[bytes], path: Path) -> list[str]:
    """Save pictures that are encoded; return their paths.

    Raises:
        OSError: See `write_file`.
    """
    paths = image_paths(path, len(pngs))
    for png, target in zip(pngs, paths, strict=True):
        write_file(target, lambda file, png=png: file.write(png))  # type: ignore[misc]
    return [str(target) for target in paths]


def save_report(path: Path, report: Report) -> None:
    """Save a report as JSON."""
    text = json.dumps(report, indent=1) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def save_latents(path: Path, latents: Array) -> None:
    """Save final latents as `.npy`, float32."""
    write_file(path, lambda file: np.save(file, latents.astype(np.float32)))


def comparison_grid(rows: Sequence[tuple[str, Sequence[tuple[bytes, Report]]]]) -> Image.Image:
    """Draw one row a prompt, one column a mode, with what each cost under it.

    Args:
        rows: (prompt, [(PNG, report), ...]).
    """
    columns = max(len(cells) for _, cells in rows)
    cell = TILE_PIXELS + MARGIN_PIXELS
    row_pixels = TITLE_PIXELS + TILE_PIXELS + CAPTION_PIXELS
    grid = Image.new("RGB", (columns * cell + MARGIN_PIXELS, len(rows) * row_pixels + MARGIN_PIXELS), "white")
    draw = ImageDraw.Draw(grid)
    title, bold, small = (ImageFont.load_default(size) for size in (20, 17, 14))
    for row, (prompt, cells) in enumerate(rows):
        top = MARGIN_PIXELS // 2 + row * row_pixels
        draw.text((MARGIN_PIXELS, top + 6), f'"{prompt}"', fill="#222222", font=title)
        for column, (png, report) in enumerate(cells):
            left = MARGIN_PIXELS + column * cell
            grid.paste(_fit(Image.open(io.BytesIO(png))), (left, top + TITLE_PIXELS))
            draw.rectangle(
                (left - 1, top + TITLE_PIXELS - 1, left + TILE_PIXELS, top + TITLE_PIXELS + TILE_PIXELS),
                outline="#dddddd",
            )
            below = top + TITLE_PIXELS + TILE_PIXELS + 6
            draw.text((left, below), MODE_TITLES[report["mode"]], fill="#222222", font=bold)
            draw.text((left, below + 24), cost_line(report), fill="#666666", font=small)
    return grid


def cost_line(report: Report) -> str:
    """Say in a few words what a generation cost."""
    nfe = report["nfe"]
    cloud = f"{nfe['cloud']} + {nfe['corrections']}" if nfe["corrections"] else str(nfe["cloud"])
    return f"{cloud} cloud / {nfe['extrapolated']} extrap. / {nfe['edge']} edge, {report['seconds']['total']:.1f} s"


def _fit(image: Image.Image) -> Image.Image:
    """Scale to a tile; small pictures keep smooth edges without ringing."""
    scale = TILE_PIXELS / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    tile = Image.new("RGB", (TILE_PIXELS, TILE_PIXELS), "#f4f4f4")
    resized = image.resize(size, Image.Resampling.BICUBIC)
    tile.paste(resized, ((TILE_PIXELS - size[0]) // 2, (TILE_PIXELS - size[1]) // 2))
    return tile
