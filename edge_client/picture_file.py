"""`--image`: a picture to start from."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

from edge_client.file_content import InputFile

# Far more than any model makes; a small file may say that it is larger.
MAX_PIXELS = 64 * 2**20


def read_picture(file: InputFile) -> Image.Image:
    """Read `--image` as diffusers' `load_image` does: RGB, turned as its camera says; transparency is left out.

    Raises:
        ValueError: It is no picture that Pillow reads, damaged, or of too many pixels; nothing is allocated for those.
        OSError: The file cannot be read.
    """
    content = io.BytesIO(file.read_bytes())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            picture = Image.open(content)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no picture that can be read: give a PNG or JPEG file") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{file} has {width} x {height} pixels; at most {MAX_PIXELS} are read: give a smaller one")
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} is a damaged picture: {error}") from error


def picture_size(file: InputFile, multiple: int) -> tuple[int, int]:
    """Return height and width of a picture, each rounded down to a multiple, as diffusers' pipelines take it.

    Raises:
        ValueError: As `read_picture`; or a side is shorter than the multiple.
        OSError: The file cannot be read.
    """
    width, height = read_picture(file).size
    if min(width, height) < multiple:
        raise ValueError(f"{file} is {height} x {width} pixels, a side of less than {multiple}: give --height, --width")
    return height - height % multiple, width - width % multiple
