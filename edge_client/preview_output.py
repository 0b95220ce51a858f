"""Where the command line shows previews: in a file that is written anew, or beside the progress."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from edge_client.pictures import write_file

COLUMNS = 40
_UPPER_HALF = "\u2580"


class PreviewFile:
    """A PNG that is written anew with each preview, whole or not at all; what waits gives way to what is newer.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing: threading.Thread | None = None

    def __call__(self, png: bytes) -> None:
        """Write a preview beside the event loop, unless one is still being written."""
        if self._writing is None or not self._writing.is_alive():
            self._writing = threading.Thread(target=self._write, args=(png,))
            self._writing.start()

    def finish(self, png: bytes) -> None:
        """Write the finished picture in the preview's place; of a video the first frame."""
        if self._writing is not None:
            self._writing.join()
        file = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(file, format="PNG")
        self._write(file.getvalue())

    def _write(self, png: bytes) -> None:
        write_file(self._path, lambda file: file.write(png))


def in_half_blocks(png: bytes, columns: int = COLUMNS) -> Text:
    """Return a picture as text, `columns` wide: each character is two pixels, one above the other."""
    with Image.open(io.BytesIO(png)) as picture:
        rows = max(2, 2 * round(columns * picture.height / picture.width / 2))
        pixels = picture.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    colours = [Color.from_rgb(*pixel) for pixel in zip(*[iter(pixels.tobytes())] * 3, strict=True)]
    text = Text(no_wrap=True)
    for row in range(0, rows, 2):
        for column in range(columns):
            above, below = (colours[(row + half) * columns + column] for half in (0, 1))
            text.append(_UPPER_HALF, Style(color=above, bgcolor=below))
        text.append("\n")
    return text
