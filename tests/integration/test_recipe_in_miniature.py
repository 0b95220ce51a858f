"""The whole recipe on a few drawn icons: packages, archive, every stage, export, and what `bench.pair` says of it."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from diffusers import StableDiffusionPipeline

from bench.pair import main as bench_pair
from models.data import load_icons
from models.icon_sets import EMOJIBASE, SHORTCODES, STYLES
from models.train import main as train

COLOURS = ("red", "green", "blue", "black", "pink", "gold")
THINGS = ("apple", "pear", "fox", "owl")
SHORT = ("--batch-size", "4", "--sheet-pictures", "2")


def write_package(cache_dir: Path, spec: str, files: dict[str, object]) -> None:
    """Write what `npm pack` fetches."""
    name, version = spec.rsplit("@", 1)
    with tarfile.open(cache_dir / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz", "w:gz") as tar:
        for member, content in files.items():
            encoded = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(encoded)
            tar.addfile(info, io.BytesIO(encoded))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    names = [(colour, thing) for colour in COLOURS for thing in THINGS]
    emoji = [
        {
            "label": f"{colour} {thing}",
            "group": 3 if thing in ("fox", "owl") else 4,
            "hexcode": f"{i:X}",
            "tags": [thing],
        }
        for i, (colour, thing) in enumerate(names)
    ]
    write_package(
        folder,
        EMOJIBASE,
        {
            "meta/groups.json": {"groups": {"3": "animals-nature", "4": "food-drink"}},
            "en/data.json": emoji,
            **{f"en/shortcodes/{name}.json": {"1": ["apple_red_one"]} for name in SHORTCODES},
        },
    )
    for width, spec in enumerate(STYLES.values(), start=4):
        icons = {
            f"{colour}-{thing}": {
                "body": f'<rect x="{4 + THINGS.index(thing)}" y="4" width="{width}" height="20" fill="{colour}"/>'
            }
            for colour, thing in names
        }
        icons |= {"red-fox-dark-skin-tone": icons["red-fox"], "owl-old": {**icons["red-owl"], "hidden": True}}
        icons["redapple"] = icons.pop("red-apple")  # another way to write the name
        write_package(folder, spec, {"icons.json": {"icons": icons, "width": 32, "height": 32}})
    return folder


pytestmark = pytest.mark.timeout(600)  # the autoencoder and the UNets start slowly on a busy machine


def run(command: object, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments)  # type: ignore[arg-type]
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def pair_dir(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("run")
    common = ("--out", str(out_dir), "--cache", str(cache_dir))
    run(train, "autoencoder", *SHORT, "--steps", "2", *common)
    run(train, "cloud", *SHORT, "--steps", "2", "--text-share", "0.5", *common)
    run(train, "edge", *SHORT, "--steps", "2", *common)
    resumed = run(train, "edge", *SHORT, "--steps", "3", "--distil", *common)
    assert "edge-000003.png: loss trained" in resumed.output
    run(train, "scorer", *SHORT, "--steps", "2", *common)
    exported = run(train, "export", "--out", str(out_dir), "--pair", str(out_dir / "pair"))
    assert "times the parameters" in exported.output
    return out_dir / "pair"


def test_icon_sets_agree_on_names(cache_dir: Path) -> None:
    icons = load_icons(cache_dir=cache_dir)
    assert len(icons) == len(STYLES) * len(COLOURS) * len(THINGS)  # nothing hidden, no skin tones
    assert len(set(icons.keys)) == len(icons)
    assert icons.names.count("red apple") == len(STYLES)
    assert set(icons.groups) == {"food-drink", "animals-nature"}
    assert icons.pictures.shape[1:] == (64, 64, 3)


def test_recipe_makes_a_pair_that_stock_diffusers_loads(pair_dir: Path) -> None:
    for name in ("cloud", "edge"):
        pipeline = StableDiffusionPipeline.from_pretrained(pair_dir / name)
        pipeline.set_progress_bar_config(disable=True)
        [image] = pipeline("red apple, noto style", num_inference_steps=2).images
        assert image.size == (64, 64)


def test_bench_measures_the_new_pair(pair_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    options = ("--num-prompts", "4", "--steps", "8", "--pair", str(pair_dir), "--cache", str(cache_dir))
    printed = run(bench_pair, *options, "--output", str(tmp_path)).output
    assert "held-out" in printed
    results = json.loads((tmp_path / "pair.json").read_text())
    assert set(results["splits"]["trained"]) == {"real", "reconstructed", "cloud", "edge"}
    assert all(0 <= found["top1"] <= found["top5"] <= 1 for found in results["splits"]["held-out"].values())
    times = {(found["threads"], found["batch"]): found for found in results["step_ms"]}
    assert times[1, 8]["cloud"] > times[1, 1]["edge"] > 0
    assert (tmp_path / "pair.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("cloud",), "--minutes M or --steps N"),
        (("cloud", "--steps", "1", "--styles", "cubist"), "no cubist; there are blob"),
        (("cloud", "--steps", "1", "--device", "cuda"), "sees no CUDA device"),
        (("edge", "--steps", "1"), "run python -m models.train cloud first"),
        (("export",), "run python -m models.train autoencoder first"),
    ],
)
def test_what_a_stage_cannot_do_is_one_plain_line(
    arguments: tuple[str, ...], line: str, cache_dir: Path, tmp_path: Path
) -> None:
    cache = () if arguments == ("export",) else ("--cache", str(cache_dir))
    result = CliRunner().invoke(train, (*arguments, *cache, "--out", str(tmp_path)))
    assert result.exit_code != 0
    assert line in result.output
