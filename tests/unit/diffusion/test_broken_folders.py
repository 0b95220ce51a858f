"""Every family's model folder with something missing or wrong: one line that says what, where, and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.loading import load_model
from models.tiny.build import FAMILIES, build

FAMILY_NAMES = sorted(FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def made(family: str) -> Path:
        if not (root / family).exists():
            build(family, root / family, size="small")
        return root / family

    return made


def links(source: Path, target: Path) -> Path:
    """Return a copy of a folder whose files cost nothing: only what a test writes anew is its own."""
    return Path(shutil.copytree(source, target, copy_function=lambda old, new: Path(new).symlink_to(old)))


def line_of(error: BaseException, folder: Path) -> str:
    text = str(error)
    assert str(folder) in text
    assert "\n" not in text
    assert len(text) < 400
    assert "None" not in text
    return text


def refused(folder: Path) -> str:
    """Return the one line that a folder is refused with, at loading or, where nothing else can tell, at first use."""

    def use() -> None:
        model = load_model(folder, device="cpu")
        model.encode_prompt("a cat", guided=False)
        model.decode(torch.zeros(model.latents_shape(64, 64, 1)))

    with pytest.raises(ValueError, match=str(folder)) as caught:
        use()
    return line_of(caught.value, folder)


def parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_missing_part_is_named_at_loading(folders, tmp_path, family):
    for part in parts(folders(family)):
        if part.name.startswith("text_encoder"):
            continue
        folder = links(folders(family), tmp_path / part.name)
        shutil.rmtree(folder / part.name)
        with pytest.raises(ValueError, match="missing") as caught:
            load_model(folder, device="cpu")
        text = line_of(caught.value, folder)
        assert str(folder / part.name) in text
        assert "fetch the model again" in text


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_missing_text_encoder_is_named_when_a_prompt_is_to_be_encoded(folders, tmp_path, family):
    encoders = [part.name for part in parts(folders(family)) if part.name.startswith("text_encoder")]
    for name in encoders:
        folder = links(folders(family), tmp_path / name)
        shutil.rmtree(folder / name)
        assert f"has no text encoder: add its {name} and tokenizers" in refused(folder)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_missing_file_is_named_at_loading(folders, tmp_path, family):
    for part in parts(folders(family)):
        for file in sorted(part.iterdir()):
            folder = links(folders(family), tmp_path / f"{part.name}-{file.name}")
            (folder / part.name / file.name).unlink()
            with pytest.raises(ValueError, match=part.name) as caught:
                load_model(folder, device="cpu")
            text = line_of(caught.value, folder)
            assert str(folder / part.name) in text
            assert file.name in text
            assert "fetch the model again" in text


def weights_of(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def rewrite(folder: Path, part: str, change: Callable[[dict[str, torch.Tensor], str], None]) -> Path:
    """Change a part's weights; `change` gets all of them and the name of one."""
    file = weights_of(folder, part)
    weights = load_file(file)
    name = min(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.ndim > 1)
    change(weights, name)
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    return file


def other_shape(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = weights[name][:1].clone()


def dropped(weights: dict[str, torch.Tensor], name: str) -> None:
    del weights[name]


def as_type(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor], str], None]:
    def cast(weights: dict[str, torch.Tensor], name: str) -> None:
        weights[name] = weights[name].to(dtype)

    return cast


WRONG_WEIGHTS = {
    "of-another-shape": (other_shape, "fetch the model again"),
    "absent": (dropped, "lacks 1 weights of its configuration"),
    "int8": (as_type(torch.int8), "holds I8 weights: quantised models are not supported"),
    "float8": (as_type(torch.float8_e4m3fn), "holds F8_E4M3 weights: quantised models are not supported"),
}


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(("change", "words"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_of_no_use_are_named_with_their_part(folders, tmp_path, family, change, words):
    for part in parts(folders(family)):
        if not list(part.glob("*.safetensors")):
            continue
        folder = links(folders(family), tmp_path / part.name)
        rewrite(folder, part.name, change)
        text = refused(folder)
        assert str(folder / part.name) in text
        assert words in text


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_pickled_weights_are_named_and_not_opened(folders, tmp_path, family):
    for part in parts(folders(family)):
        if not list(part.glob("*.safetensors")):
            continue
        folder = links(folders(family), tmp_path / part.name)
        weights_of(folder, part.name).unlink()
        (folder / part.name / "pytorch_model.bin").write_bytes(b"never read")
        text = refused(folder)
        assert f"{folder / part.name} has pickled weights only (pytorch_model.bin)" in text
        assert "safetensors" in text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_quantised_part_is_refused_before_anything_is_read(folders, tmp_path, part):
    folder = links(folders("sd"), tmp_path / "model")
    file = folder / part / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    file.unlink()
    file.write_text(json.dumps(config))
    assert f"{folder / part} is quantised, which is not supported" in refused(folder)
