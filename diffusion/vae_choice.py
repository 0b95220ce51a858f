"""Which VAE decodes, and how; checked without loading anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VaeChoice:
    """What `--vae`, `--vae-tiling` and `--vae-slicing` say.

    Attributes:
        path_or_id: A VAE's own folder (config.json and weights), a pipeline's folder, or a hub id of either; None: the
            model's own.
        tiling: Decode in tiles that overlap: memory follows the tile's size, not the picture's.
        slicing: Decode a batch one picture at a time.
    """

    path_or_id: str | None = None
    tiling: bool = False
    slicing: bool = False

    def __post_init__(self) -> None:
        if self.path_or_id is not None and not self.path_or_id.strip():
            raise ValueError("--vae is empty: name a VAE's folder or hub id, or leave it out")


OWN_VAE = VaeChoice()
