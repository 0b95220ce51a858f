"""The training data: every icon rendered into one compact archive, and the held-out split.

The archive is a function of the pinned package versions alone, so two machines build the same one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from models.icon_sets import EMOJIBASE, STYLES, read_concepts, read_icons, render

CACHE_DIR = Path(__file__).resolve().parent / "cache"
ARCHIVE_FORMAT = 2  # raised whenever naming or rendering changes
HELD_OUT_SHARE = 20  # one (concept, style) pair in this many
DEFAULT_STYLES = tuple(STYLES)
DEFAULT_GROUPS = ("food-drink", "animals-nature")


cache_option = click.option(
    "--cache",
    "cache_dir",
    type=click.Path(path_type=Path),
    default=CACHE_DIR,
    help="Where packages and icons are kept.",
)
"""The option of every command that needs the icons."""


@dataclass(frozen=True, kw_only=True)
class Icons:
    """Pictures with what is known about each, all of the same length.

    Attributes:
        pictures: `[N, size, size, 3]`, uint8, on white.
        names: What the picture shows, such as `red apple`.
        styles: Style word, a key of `STYLES`.
        groups: Unicode group such as `food-drink`, or `other`.
        keywords: Related words of each picture.
        held_out: True where no training stage may look.
    """

    pictures: npt.NDArray[np.uint8]
    names: list[str]
    styles: list[str]
    groups: list[str]
    keywords: list[tuple[str, ...]]
    held_out: npt.NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def select(
        self,
        *,
        styles: tuple[str, ...] | None = None,
        groups: tuple[str, ...] | None = None,
        held_out: bool | None = None,
    ) -> "Icons":
        """Keep the icons of some styles, of some groups, of one side of the held-out split; None keeps all."""
        keep = [
            i
            for i in range(len(self))
            if (styles is None or self.styles[i] in styles)
            and (groups is None or self.groups[i] in groups)
            and (held_out is None or self.held_out[i] == held_out)
        ]
        return self.take(keep)

    def take(self, rows: Sequence[int]) -> "Icons":
        """Return the icons of these rows, in this order."""
        return Icons(
            pictures=self.pictures[rows],
            names=[self.names[i] for i in rows],
            styles=[self.styles[i] for i in rows],
            groups=[self.groups[i] for i in rows],
            keywords=[self.keywords[i] for i in rows],
            held_out=self.held_out[rows],
        )

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Return (name, style) of every icon; no two are the same."""
        return list(zip(self.names, self.styles, strict=True))


def is_held_out(name: str, style: str) -> bool:
    """Whether a (concept, style) pair is kept from every training stage; a pure function of both words."""
    digest = hashlib.sha256(f"{name}/{style}".encode()).hexdigest()
    return int(digest[:8], 16) % HELD_OUT_SHARE == 0


def load_icons(*, size: int = 64, cache_dir: Path = CACHE_DIR) -> Icons:
    """Load every icon of every style at `size` pixels, building the archive first where it is not cached."""
    archive = archive_path(size, cache_dir)
    if not archive.is_file():
        _build_archive(archive, size, cache_dir)
    with np.load(archive) as data:
        return Icons(
            pictures=data["pictures"],
            names=[str(name) for name in data["names"]],
            styles=[str(style) for style in data["styles"]],
            groups=[str(group) for group in data["groups"]],
            keywords=[tuple(str(words).split("|")) if words else () for words in data["keywords"]],
            held_out=data["held_out"],
        )


def archive_path(size: int, cache_dir: Path) -> Path:
    """Where the archive of the pinned packages is kept; other versions have another name."""
    sources = "\n".join([str(ARCHIVE_FORMAT), EMOJIBASE, *STYLES.values()])
    return cache_dir / f"emoji-{size}px-{hashlib.sha256(sources.encode()).hexdigest()[:8]}.npz"


def _build_archive(archive: Path, size: int, cache_dir: Path) -> None:
    concepts = read_concepts(cache_dir)
    icons = [icon for style in STYLES for icon in read_icons(style, concepts, cache_dir)]
    with click.progressbar(icons, label="rendering") as shown:
        pictures = np.stack([render(icon.svg, size) for icon in shown])
    unfinished = archive.with_suffix(".partial.npz")
    np.savez_compressed(
        unfinished,
        pictures=pictures,
        names=np.array([icon.concept.name for icon in icons]),
        styles=np.array([icon.style for icon in icons]),
        groups=np.array([icon.concept.group for icon in icons]),
        keywords=np.array(["|".join(icon.concept.keywords) for icon in icons]),
        held_out=np.array([is_held_out(icon.concept.name, icon.style) for icon in icons]),
    )
    unfinished.replace(archive)


if __name__ == "__main__":
    icons = load_icons()
    num_pictures, size = icons.pictures.shape[:2]
    print(f"{num_pictures} pictures of {size} px in {len(STYLES)} styles, {int(icons.held_out.sum())} held out")
    print(archive_path(size, CACHE_DIR))
