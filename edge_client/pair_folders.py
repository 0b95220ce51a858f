"""Two models compared before anything is started or loaded: by their folders' configurations alone."""

from __future__ import annotations

from pathlib import Path

from diffusion.compatibility import check_pair
from diffusion.loading import load_outline
from diffusion.vae_choice import VaeChoice
from wire.errors import IncompatibleModels


def check_folders(cloud_model: str, edge_model: str, *, vae: VaeChoice, text_encoder: str) -> None:
    """Refuse a pair that cannot work while its gigabytes are still on the disk; a hub id is not fetched for this.

    Args:
        cloud_model: Folder of the large model.
        edge_model: Of the small one.
        vae: What decodes on the edge.
        text_encoder: Who encodes the prompt.

    Raises:
        IncompatibleModels: They do not share latents, or cannot share embeddings.
        ValueError: One of the folders is no model that can be run.
    """
    if not (Path(cloud_model).is_dir() and Path(edge_model).is_dir()):
        return
    cloud, edge = load_outline(cloud_model).info, load_outline(edge_model, vae=vae).info
    refusal = check_pair(cloud, edge, text_encoder=text_encoder).refusal
    if refusal is not None:
        raise IncompatibleModels(refusal)
