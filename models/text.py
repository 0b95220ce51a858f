"""A small CLIP tokenizer and text encoder."""

import json
from collections.abc import Iterable
from typing import cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int = 3000) -> CLIPTokenizer:
    """Learn byte-pair merges on `corpus`, in the format that stock `CLIPTokenizer` loads."""
    stock = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = stock.normalizer
    bpe.pre_tokenizer = stock.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=MAX_TOKENS)


def text_config(
    vocab_size: int, *, width: int, num_layers: int, bos_token_id: int, eos_token_id: int, pad_token_id: int = 1
) -> CLIPTextConfig:
    """Shape of a small text encoder."""
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def make_text_encoder(tokenizer: CLIPTokenizer, *, width: int = 128, num_layers: int = 3) -> CLIPTextModel:
    """Build an untrained text encoder for `tokenizer`; `width` is the UNets' `cross_attention_dim`."""
    config = text_config(
        len(tokenizer),
        width=width,
        num_layers=num_layers,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Pad captions to `[B, MAX_TOKENS]` token ids, as the stock pipeline does."""
    batch = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return cast(torch.Tensor, batch.input_ids)
