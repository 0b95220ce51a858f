"""The bundled pair of emoji models, and the recipe that trained it (`python -m models.train`)."""

from pathlib import Path
from typing import NamedTuple

DEFAULT_GUIDANCE_SCALE = 2.0
"""Guidance of the bundled pair: 1.5 to 3 score alike, less loses the prompt (models/README.md)."""

PROMPT_FORM = "{name}, {style} style"
"""What the pair was trained to understand, such as `red apple, fluent style`."""

PAIR_DIR = Path(__file__).resolve().parent / "pair"
PROMPTS_DIR = PAIR_DIR.parent / "prompts"
"""Captions, one a line: `search.txt` to choose plans with, `report.txt` to measure them with, both of combinations the
pair was trained on; `held_out.txt` of those it was not."""

PLANS_DIR = PAIR_DIR.parent / "plans"
"""Plan files of the bundled pair, `SCHEDULER-STEPS.json`."""


class ModelPair(NamedTuple):
    """Two diffusers pipeline folders that share one latent space."""

    cloud: Path
    edge: Path


def read_prompts(name: str) -> list[str]:
    """Return the captions of one of the bundled lists: `search`, `report` or `held_out`."""
    return (PROMPTS_DIR / f"{name}.txt").read_text().splitlines()


def bundled_pair() -> ModelPair:
    """Locate the pair that ships with the repository.

    Returns:
        The two pipeline folders, ready for `StableDiffusionPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: If either folder lacks its pipeline index.
    """
    pair = ModelPair(PAIR_DIR / "cloud", PAIR_DIR / "edge")
    for folder in pair:
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"no bundled model in {folder}: check the whole repository out, or train the pair (models/README.md)"
            )
    return pair
