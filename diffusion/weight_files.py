"""Files with weights: which are read, and what is said of those that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

_FLOATS = ("F64", "F32", "F16", "BF16")
# Buffers, such as the places of tokens in older text encoders.
_BESIDE_WEIGHTS = ("I64", "I32", "BOOL")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_SHAPE = re.compile(r"because (\S+) expected shape \D*?(\[.*?\])\)?, but got \D*?(\[.*?\])")


def check_safetensors(file: Path) -> None:
    """Check a safetensors file: its header against its size, and that its numbers can be run.

    Raises:
        ValueError: It is missing or damaged, or holds quantised weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as weights:
            types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or missing: {first_line(error)}; fetch the model again") from error
    foreign = sorted(types - {*_FLOATS, *_BESIDE_WEIGHTS})
    if foreign:
        # Cast to floats without their scales they would be other numbers, and nobody would be told.
        raise ValueError(
            f"{file} holds {', '.join(foreign)} weights: quantised models are not supported; fetch the model with "
            "float32, float16 or bfloat16 weights"
        )


def no_weights(folder: Path, stem: str) -> str:
    """Return what is said of a part's folder without safetensors weights.

    Args:
        folder: Of the part.
        stem: What the file would be called, without its suffix.
    """
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED)
    if pickled:
        return (
            f"{folder} has pickled weights only ({pickled[0]}), which can run code and are not read: fetch or save the "
            f"model as safetensors ({stem}.safetensors)"
        )
    return f"{folder} has no {stem}.safetensors: the model folder is not whole; fetch the model again"


def load_failure(error: BaseException) -> str:
    """Return in one line why a library could not load a part."""
    other = _OTHER_SHAPE.search(str(error))
    if other is None:
        return first_line(error)
    name, wanted, given = other.groups()
    return f"{name} is {given}, its config.json says {wanted}: they are of different models; fetch the model again"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
