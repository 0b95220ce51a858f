"""Files of videos: animated PNG between processes, lossless; MP4 and GIF for those who watch."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from edge_client.pictures import METADATA_KEY, encode_images, save_images, write_file
from edge_client.report import Report
from wire.messages import Array

VIDEO_SUFFIXES = (".mp4", ".gif")
# Of x264: 0 is lossless, 23 its own default, 18 said to look the same as the original.
_X264_QUALITY = "18"


def check_writer(path: Path) -> None:
    """Find out before the work starts whether a video of this suffix can be written.

    Raises:
        ValueError: PyAV is not installed.
    """
    if path.suffix.lower() != ".mp4":
        return
    try:
        import av  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{path}: .mp4 is written with PyAV, which is not installed: pip install 'ecdiff[video]', "
            "or name a .gif or an animated .png"
        ) from None


def encode_pixels(pixels: Array, report: Report) -> list[bytes]:
    """Return PNGs with the report in their metadata, one a picture, animated ones of videos.

    Args:
        pixels: `[B, H, W, 3]`, or videos `[B, F, H, W, 3]`, uint8.
        report: Its `video` says how fast the frames follow each other.
    """
    if pixels.ndim == 4:
        return encode_images([Image.fromarray(picture) for picture in pixels], report)
    encoded = []
    for index, video in enumerate(pixels):
        info = PngInfo()
        info.add_text(METADATA_KEY, json.dumps({**report, "seed": report["seed"] + index}))
        first, *others = (Image.fromarray(frame) for frame in video)
        file = io.BytesIO()
        first.save(
            file,
            format="PNG",
            pnginfo=info,
            save_all=True,
            append_images=others,
            duration=1000 / report["video"]["fps"],
            loop=0,
        )
        encoded.append(file.getvalue())
    return encoded


def save_outputs(pngs: Sequence[bytes], path: Path, report: Report) -> list[str]:
    """Save pictures, or videos in the format of the path's suffix; return their paths.

    A picture under the name of a video becomes a PNG: what was made is never lost.

    Raises:
        OSError: See `write_file`.
    """
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return save_images(pngs, path)
    if report["video"] is None:
        report["warnings"].append(f"the model makes pictures, so {path.name} became a PNG")
        return save_images(pngs, path.with_suffix(".png"))
    names = []
    for index, png in enumerate(pngs):
        target = path if len(pngs) == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")
        write_file(target, functools.partial(_write, png, target.suffix.lower()))
        names.append(str(target))
    return names


def frames_of(png: bytes) -> Iterator[Image.Image]:
    """Yield the frames of a video that `encode_pixels` encoded; equal neighbours share one in the file."""
    animation = Image.open(io.BytesIO(png))
    fps = json.loads(animation.text[METADATA_KEY])["video"]["fps"]  # type: ignore[attr-defined]
    for frame in ImageSequence.Iterator(animation):
        picture = frame.convert("RGB")
        for _ in range(max(1, round(frame.info["duration"] * fps / 1000))):
            yield picture


def _write(png: bytes, suffix: str, file: BinaryIO) -> None:
    text = Image.open(io.BytesIO(png)).text[METADATA_KEY]  # type: ignore[attr-defined]
    fps = json.loads(text)["video"]["fps"]
    if suffix == ".gif":
        _write_gif(png, fps, text, file)
    else:
        _write_mp4(png, fps, text, file)


def _write_gif(png: bytes, fps: int, text: str, file: BinaryIO) -> None:
    first, *others = frames_of(png)
    first.save(file, format="GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0, comment=text)


def _write_mp4(png: bytes, fps: int, text: str, file: BinaryIO) -> None:
    import av

    frames = list(frames_of(png))
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=fps, options={"crf": _X264_QUALITY})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"  # what every player plays
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
