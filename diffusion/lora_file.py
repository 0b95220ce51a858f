"""What `--lora` names; checked without loading anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file and how much of it counts.

    Attributes:
        path: Safetensors, as diffusers or kohya write it.
        scale: Factor of its change; 1 as it was trained.
    """

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Read `PATH[:SCALE]`.

        Raises:
            ValueError: There is no such safetensors file, or the scale is not finite.
        """
        head, colon, tail = text.rpartition(":")
        try:
            lora = cls(path=Path(head), scale=float(tail)) if colon else cls(path=Path(text))
        except ValueError:  # a name with a colon in it
            lora = cls(path=Path(text))
        if not math.isfinite(lora.scale):
            raise ValueError(f"the scale of a LoRA must be a finite number, not {lora.scale}: {text!r}")
        if not lora.path.is_file():
            raise ValueError(f"there is no LoRA file {str(lora.path)!r}: give PATH[:SCALE] of a .safetensors file")
        if lora.path.suffix != ".safetensors":
            raise ValueError(f"{lora.path} is no .safetensors file; only safetensors weights are read")
        return lora

    def __str__(self) -> str:
        return f"{self.path}:{self.scale:g}"
