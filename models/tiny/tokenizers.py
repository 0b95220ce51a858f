"""Tokenizers that are made here: one token a letter, so that no vocabulary must be fetched."""

from __future__ import annotations

import string
from typing import Any

_LETTERS = string.ascii_lowercase + string.digits + string.punctuation
CLIP_LENGTH = 77
CLIP_VOCABULARY = 2 * len(_LETTERS) + 2
T5_VOCABULARY = len(_LETTERS) + 4


def clip_tokenizer() -> Any:
    """Return a `CLIPTokenizer` of `CLIP_VOCABULARY` tokens; the last one ends a prompt."""
    from transformers import CLIPTokenizer

    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_LENGTH)


def t5_tokenizer() -> Any:
    """Return a `T5Tokenizer` of `T5_VOCABULARY` tokens."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in _LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
