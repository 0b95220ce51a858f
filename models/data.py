"""Emoji icons from npm packages, rendered into one compact archive.

The archive is a function of the pinned package versions alone, so two machines build the same one.
"""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

CACHE_DIR = Path(__file__).resolve().parent / "cache"
KEYWORDS_PACKAGE = "emojibase-data@17.0.0"
HELD_OUT_SHARE = 20  # one (concept, style) pair in this many
SKIN_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?(-|$)")
STYLES: dict[str, str] = {
    "fluent": "@iconify-json/fluent-emoji@1.2.7",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "firefox": "@iconify-json/fxemoji@1.2.2",
    "emojione": "@iconify-json/emojione@1.2.3",
}
DEFAULT_STYLES = ("fluent", "noto")
DEFAULT_GROUPS = ("food-drink", "animals-nature")


class Concept(NamedTuple):
    """What the emoji standard says about one icon name."""

    group: str
    keywords: tuple[str, ...]


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

    def select(self, *, groups: tuple[str, ...] | None = None, held_out: bool | None = None) -> "Icons":
        """Keep the icons of some groups, of one side of the held-out split, or both; None keeps all."""
        keep = [
            i
            for i in range(len(self))
            if (groups is None or self.groups[i] in groups) and (held_out is None or self.held_out[i] == held_out)
        ]
        return Icons(
            pictures=self.pictures[keep],
            names=[self.names[i] for i in keep],
            styles=[self.styles[i] for i in keep],
            groups=[self.groups[i] for i in keep],
            keywords=[self.keywords[i] for i in keep],
            held_out=self.held_out[keep],
        )


def is_held_out(name: str, style: str) -> bool:
    """Whether a (concept, style) pair is kept from every training stage; a pure function of both words."""
    digest = hashlib.sha256(f"{name}/{style}".encode()).hexdigest()
    return int(digest[:8], 16) % HELD_OUT_SHARE == 0


def load_icons(styles: tuple[str, ...] = DEFAULT_STYLES, *, size: int = 64, cache_dir: Path = CACHE_DIR) -> Icons:
    """Load the archive of `styles` at `size` pixels, building it first where it is not cached."""
    archive = cache_dir / f"emoji-{'-'.join(styles)}-{size}.npz"
    if not archive.is_file():
        _build_archive(archive, styles, size, cache_dir)
    with np.load(archive) as data:
        return Icons(
            pictures=data["pictures"],
            names=[str(name) for name in data["names"]],
            styles=[str(style) for style in data["styles"]],
            groups=[str(group) for group in data["groups"]],
            keywords=[tuple(str(words).split("|")) if words else () for words in data["keywords"]],
            held_out=data["held_out"],
        )


def _build_archive(archive: Path, styles: tuple[str, ...], size: int, cache_dir: Path) -> None:
    concepts = _read_concepts(cache_dir)
    rows = []
    for style in styles:
        for name, svg in _read_icons(STYLES[style], cache_dir):
            words = name.replace("-", " ")
            concept = concepts.get(_slug(name), Concept("other", ()))
            rows.append((_render(svg, size), words, style, concept.group, "|".join(concept.keywords)))
    pictures, names, row_styles, groups, keywords = zip(*rows, strict=True)
    unfinished = archive.with_suffix(".partial.npz")
    np.savez_compressed(
        unfinished,
        pictures=np.stack(pictures),
        names=np.array(names),
        styles=np.array(row_styles),
        groups=np.array(groups),
        keywords=np.array(keywords),
        held_out=np.array([is_held_out(name, style) for name, style in zip(names, row_styles, strict=True)]),
    )
    unfinished.replace(archive)


def _fetch_package(spec: str, cache_dir: Path) -> Path:
    """Return the cached tarball of `name@version`, fetching it with npm where it is missing."""
    name, version = spec.rsplit("@", 1)
    tarball = cache_dir / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not tarball.is_file():
        cache_dir.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", spec, "--silent"], cwd=cache_dir, check=True, capture_output=True)
    return tarball


def _read_package_json(spec: str, member: str, cache_dir: Path) -> Any:
    with tarfile.open(_fetch_package(spec, cache_dir)) as tar:
        stream = tar.extractfile(f"package/{member}")
        if stream is None:
            raise FileNotFoundError(f"{spec} holds no file {member}")
        return json.load(stream)


def _read_icons(spec: str, cache_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, SVG text) of each icon without a skin tone, sorted by name; aliases are not repeated."""
    icon_set = _read_package_json(spec, "icons.json", cache_dir)
    for name, icon in sorted(icon_set["icons"].items()):
        if SKIN_TONE.search(name) or icon.get("hidden"):
            continue
        width = icon.get("width", icon_set.get("width", 16))
        height = icon.get("height", icon_set.get("height", 16))
        side = max(width, height)  # flags are wide: centre them on a square
        left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
        box = f"{left:g} {top:g} {side} {side}"
        yield name, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def _read_concepts(cache_dir: Path) -> dict[str, Concept]:
    groups = _read_package_json(KEYWORDS_PACKAGE, "meta/groups.json", cache_dir)["groups"]
    concepts = {}
    for emoji in _read_package_json(KEYWORDS_PACKAGE, "en/data.json", cache_dir):
        if "group" in emoji:
            keywords = tuple(tag for tag in emoji.get("tags", ()) if tag != emoji["label"])
            concepts[_slug(emoji["label"])] = Concept(groups[str(emoji["group"])], keywords)
    return concepts


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['\u2019]", "", label.lower())).strip("-")


def _render(svg: str, size: int) -> npt.NDArray[np.uint8]:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


if __name__ == "__main__":
    icons = load_icons()
    num_pictures, size = icons.pictures.shape[:2]
    print(f"{num_pictures} pictures of {size} px, {int(icons.held_out.sum())} held out")
