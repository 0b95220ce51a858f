"""What the families with a transformer of two-pixel patches share."""

from __future__ import annotations

from diffusion.pipeline_folder import PipelineFolder
from diffusion.scheduler_config import PATCH_SIDE


def check_transformer(folder: PipelineFolder, wanted: dict[str, tuple[int, str]]) -> None:
    """Refuse a transformer that does not fit the other parts.

    Args:
        folder: The pipeline.
        wanted: Key of the transformer's configuration -> what the other parts give, and what that is.

    Raises:
        ValueError: The text says what does not fit.
    """
    config = folder.config("transformer")
    for key, (given, what) in wanted.items():
        if config.get(key) != given:
            raise ValueError(f"{folder.path}: the transformer's {key} is {config.get(key)}, {what} {given}")
    if config.get("patch_size", 1) * _packed_side(folder) != PATCH_SIDE:
        raise ValueError(f"{folder.path}: the transformer's patch_size {config.get('patch_size')} is not supported")


def _packed_side(folder: PipelineFolder) -> int:
    """FLUX's pipeline packs patches itself, and its transformer has patches of one."""
    return PATCH_SIDE if folder.pipeline_class == "FluxPipeline" else 1
