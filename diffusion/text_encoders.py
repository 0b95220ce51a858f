"""A pipeline folder's text encoders: each with its tokenizer, loaded when first used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffusion.pipeline_folder import PipelineFolder

CLIP = ("CLIPTextModel",)
CLIP_PROJECTED = ("CLIPTextModelWithProjection",)
T5 = ("T5EncoderModel",)
UMT5 = ("UMT5EncoderModel",)
_TOKENIZERS = {
    "CLIPTextModel": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "CLIPTextModelWithProjection": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "T5EncoderModel": ("T5Tokenizer", "T5TokenizerFast"),
    "UMT5EncoderModel": ("T5Tokenizer", "T5TokenizerFast"),
}
# Which of a tokenizer's files decide what tokens a prompt becomes; each tokenizer has some of them.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model")


class TextEncoder:
    """One text encoder of a pipeline folder. Its class is checked now.

    Args:
        folder: The pipeline.
        classes: What it may be, classes of transformers: `CLIP`, `CLIP_PROJECTED`, `T5` or `UMT5`.
        device: Where it runs.
        dtype: Of its weights.
        suffix: Of the subfolders `text_encoder` and `tokenizer`: empty, `_2` or `_3`.

    Raises:
        ValueError: If the folder has no such encoder or tokenizer.
    """

    def __init__(
        self,
        folder: PipelineFolder,
        classes: tuple[str, ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
        suffix: str = "",
    ) -> None:
        self._folder, self._device, self._dtype = folder, device, dtype
        self._part, self._tokenizer_part = f"text_encoder{suffix}", f"tokenizer{suffix}"
        self._class_name = folder.part_class(self._part, classes)
        self._tokenizer_class = folder.part_class(self._tokenizer_part, _TOKENIZERS[self._class_name])

    @property
    def config(self) -> dict[str, Any]:
        """The encoder's configuration."""
        return self._folder.config(self._part)

    def fingerprint(self) -> str:
        """Return a hex digest of encoder and vocabulary.

        Raises:
            ValueError: If weights or vocabulary are missing or damaged.
        """
        where = self._folder.path / self._tokenizer_part
        files = [where / name for name in _VOCABULARIES if (where / name).is_file()]
        if not {"tokenizer.json", "vocab.json", "spiece.model"} & {file.name for file in files}:
            raise ValueError(
                f"{where} is missing, or has neither tokenizer.json nor vocab.json nor spiece.model; "
                "fetch the model again"
            )
        length = self._folder.config(self._tokenizer_part, "tokenizer_config.json").get("model_max_length")
        vocabulary = b"\0".join(file.read_bytes() for file in files) + f"\0{length}".encode()
        return self._folder.fingerprint(self._part, "model", extra=vocabulary)

    def __call__(self, prompt: str, *, max_length: int | None = None) -> Any:
        """Encode one prompt; tokens past the encoder's length, or `max_length`, are cut off.

        Returns:
            What transformers' encoder returns, hidden states of every layer included.
        """
        tokens, mask = self._tokens(prompt, max_length)
        wants_mask = bool(getattr(self.network.config, "use_attention_mask", False)) or self._class_name in UMT5
        return self.network(
            tokens.to(self._device),
            attention_mask=mask.to(self._device) if wants_mask else None,
            output_hidden_states=True,
        )

    def num_tokens(self, prompt: str, *, max_length: int | None = None) -> int:
        """Return how many tokens of its length a prompt fills."""
        return int(self._tokens(prompt, max_length)[1].sum())

    @cached_property
    def network(self) -> Any:
        """The encoder itself."""
        import transformers

        return self._folder.load_part(self._part, getattr(transformers, self._class_name), self._dtype, self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        import transformers

        return self._folder.load_tokenizer(getattr(transformers, self._tokenizer_class), self._tokenizer_part)

    def _tokens(self, prompt: str, max_length: int | None) -> tuple[Tensor, Tensor]:
        if max_length is None:
            max_length = min(self._tokenizer.model_max_length, self.network.config.max_position_embeddings)
        tokens = self._tokenizer(
            prompt, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids, tokens.attention_mask


def lacking_text_encoders(folder: PipelineFolder, num_encoders: int, optional: Collection[str]) -> list[str]:
    """Return the subfolders of text encoders that the family needs and a folder does not have."""
    parts = [f"text_encoder{suffix}" for suffix in _suffixes(num_encoders)]
    return [part for part in parts if folder.lacks(part) and (part not in optional or folder.has_part(part))]


def find_text_encoders(
    folder: PipelineFolder,
    classes: Sequence[tuple[str, ...]],
    *,
    optional: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
) -> list[TextEncoder]:
    """Return a folder's text encoders; none at all where one that the family needs was left out on purpose.

    An edge model without any is fed what the cloud encodes: its T5 alone may be larger than all the rest.

    Args:
        folder: The pipeline.
        classes: Of each, in the order of the subfolders `text_encoder`, `text_encoder_2`, ...
        optional: Subfolders that a pipeline may leave out.
        device: Where they run.
        dtype: Of their weights.

    Raises:
        ValueError: One is of another class.
    """
    if lacking_text_encoders(folder, len(classes), optional):
        return []
    return [
        TextEncoder(folder, allowed, device=device, dtype=dtype, suffix=suffix)
        for allowed, suffix in zip(classes, _suffixes(len(classes)), strict=True)
        if folder.has_part(f"text_encoder{suffix}")
    ]


def _suffixes(num_encoders: int) -> list[str]:
    return ["", *(f"_{number}" for number in range(2, num_encoders + 1))]
