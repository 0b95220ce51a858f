"""Emoji icons from pinned npm packages: their names, what the emoji standard says of each, and their pictures."""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

EMOJIBASE = "emojibase-data@17.0.0"
STYLES: dict[str, str] = {
    "fluent": "@iconify-json/fluent-emoji@1.2.7",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "firefox": "@iconify-json/fxemoji@1.2.2",
    "emojione": "@iconify-json/emojione@1.2.3",
}
SHORTCODES = ("emojibase", "cldr", "github", "iamcal", "joypixels")
TONES = "light|medium-light|medium|medium-dark|dark"
SKIN_TONE = re.compile(rf"-({TONES})-skin-tone|-tone[1-5]|(?<!-traffic)(?<!-car)-({TONES})$")


class Concept(NamedTuple):
    """What the emoji standard says about one icon.

    Attributes:
        name: Such as `red apple`, one for all icon sets.
        group: Unicode group such as `food-drink`, or `other`.
        keywords: Related words.
    """

    name: str
    group: str
    keywords: tuple[str, ...]


class Icon(NamedTuple):
    """One picture of an icon set."""

    concept: Concept
    style: str
    svg: str


def read_icons(style: str, concepts: dict[str, Concept], cache_dir: Path) -> Iterator[Icon]:
    """Yield the icons of one style without skin tones, sorted by name; aliases are not repeated.

    Args:
        style: A key of `STYLES`.
        concepts: What `read_concepts` returned.
        cache_dir: Where packages are kept.
    """
    icon_set = _read_package_json(STYLES[style], "icons.json", cache_dir)
    icons = {
        name: icon
        for name, icon in sorted(icon_set["icons"].items())
        if not icon.get("hidden") and not SKIN_TONE.search(name)
    }
    named = {name: concepts[name] for name in icons if name in concepts and _slug(concepts[name].name) == name}
    taken = {concept.name for concept in named.values()}
    for name, icon in icons.items():
        concept = named.get(name)
        if concept is None:
            concept = concepts.get(name) or concepts.get(_squash(name))
            if concept is None or concept.name in taken:  # another icon is better called so
                concept = Concept(name.replace("-", " "), "other", ())
            if concept.name in taken:
                continue  # nobody could ask for this one and not the other
            taken.add(concept.name)
        width = icon.get("width", icon_set.get("width", 16))
        height = icon.get("height", icon_set.get("height", 16))
        side = max(width, height)  # flags are wide: centre them on a square
        left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
        box = f"{left:g} {top:g} {side} {side}"
        yield Icon(concept, style, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>')


def read_concepts(cache_dir: Path) -> dict[str, Concept]:
    """Return the standard's emoji by the name that icon sets give them, and by that name squashed together.

    Sets disagree on names (`alarmclock`, `alarm-clock`): an emoji is also found by its shortcodes.
    """
    groups = _read_package_json(EMOJIBASE, "meta/groups.json", cache_dir)["groups"]
    shortcodes = [_read_package_json(EMOJIBASE, f"en/shortcodes/{name}.json", cache_dir) for name in SHORTCODES]
    named: dict[str, Concept] = {}
    squashed: dict[str, Concept] = {}
    for emoji in _read_package_json(EMOJIBASE, "en/data.json", cache_dir):
        if "group" not in emoji:
            continue
        slug = _slug(emoji["label"])
        keywords = tuple(tag for tag in emoji.get("tags", ()) if tag != emoji["label"])
        named[slug] = Concept(slug.replace("-", " "), groups[str(emoji["group"])], keywords)
        for codes in shortcodes:
            codes_of_emoji = codes.get(emoji["hexcode"], ())
            for code in [codes_of_emoji] if isinstance(codes_of_emoji, str) else codes_of_emoji:
                squashed.setdefault(_squash(code), named[slug])
    squashed |= {_squash(slug): concept for slug, concept in named.items()}
    return squashed | named


def render(svg: str, size: int) -> npt.NDArray[np.uint8]:
    """Draw an icon on white as `[size, size, 3]`."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _fetch_package(spec: str, cache_dir: Path) -> Path:
    """Return the cached tarball of `name@version`, fetching it with npm where it is missing."""
    name, version = spec.rsplit("@", 1)
    tarball = cache_dir / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not tarball.is_file():
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", spec, "--silent"], cwd=cache_dir, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise click.ClickException(f"{spec} is fetched with npm, which is not installed") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise click.ClickException(f"npm could not fetch {spec}: {reason}") from None
    return tarball


def _read_package_json(spec: str, member: str, cache_dir: Path) -> Any:
    with tarfile.open(_fetch_package(spec, cache_dir)) as tar:
        stream = tar.extractfile(f"package/{member}")
        if stream is None:
            raise FileNotFoundError(f"{spec} holds no file {member}")
        return json.load(stream)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['\u2019]", "", label.lower())).strip("-")


def _squash(name: str) -> str:
    """Bring `flag-for-france`, `flag: France` and `flag_france` to one form."""
    joined = re.sub(r"[^a-z0-9]+", "", name.lower())
    joined = re.sub(r"^flagfor(flag)?", "flag", joined)
    return joined.removesuffix("face") if len(joined) > 6 else joined
