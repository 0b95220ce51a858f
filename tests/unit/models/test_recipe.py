from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from models.autoencoder import SCALING_FACTOR, encode, make_autoencoder
from models.captions import caption_corpus, plain_caption
from models.data import STYLES, Icons, is_held_out
from models.loop import LoopConfig, Trainer
from models.tasks import DenoiserTask, as_tensor
from models.text import MAX_TOKENS, make_text_encoder, tokenize, train_tokenizer
from models.unets import make_cloud_unet, make_edge_unet


@pytest.fixture(scope="module")
def icons() -> Icons:
    names = ["red apple", "ant", "bear", "pizza", "tulip", "fox", "kiwi", "owl"]
    return Icons(
        pictures=np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8),
        names=names,
        styles=["fluent", "noto"] * 4,
        groups=["food-drink"] * 4 + ["animals-nature"] * 4,
        keywords=[("food", "fruit")] * 8,
        held_out=np.array([False] * 7 + [True]),
    )


@pytest.fixture(scope="module")
def tokenizer(icons: Icons) -> CLIPTokenizer:
    return train_tokenizer(caption_corpus(icons), vocab_size=600)


class QuietTask(DenoiserTask):
    """Without sample sheets, which take longer than the training here."""

    def draw_sheet(self, averaged: dict[str, Any], path: Path) -> str:
        return "no sheet"


def make_trainer(icons: Icons, tokenizer: CLIPTokenizer, out_dir: Path) -> Trainer:
    torch.manual_seed(0)
    task = QuietTask(
        "edge_unet",
        make_edge_unet(latents_size=3),
        make_text_encoder(tokenizer, num_layers=1),
        tokenizer,
        make_autoencoder(as_tensor(icons), decoder_channels=8),
        icons,
        train_text=True,
        device="cpu",
    )
    config = LoopConfig(out_dir=out_dir, stage="edge", num_steps=6, batch_size=4, num_warmup_steps=2)
    return Trainer(task, config)


def test_resumed_training_equals_uninterrupted_training(icons: Icons, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    whole = make_trainer(icons, tokenizer, tmp_path / "whole")
    whole.run()
    make_trainer(icons, tokenizer, tmp_path / "parts").run(stop_step=3)
    resumed = make_trainer(icons, tokenizer, tmp_path / "parts")
    assert resumed.step == 3
    resumed.run()
    assert resumed.step == whole.step == 6
    for name in ("edge_unet", "text_encoder"):
        for ours, theirs in zip(whole.averaged[name].parameters(), resumed.averaged[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_encoder_is_the_principal_components_of_patches(icons: Icons) -> None:
    pictures = as_tensor(icons)
    latents = encode(make_autoencoder(pictures, decoder_channels=8), pictures) / SCALING_FACTOR
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).double()
    covariance = flat.T @ flat / len(flat)
    spread = covariance.diagonal()
    assert flat.mean(0).abs().max() < 1e-4
    assert (covariance - spread.diag()).abs().max() < 1e-4  # uncorrelated
    assert spread.mean().item() == pytest.approx(1 / SCALING_FACTOR**2, rel=1e-3)


def test_held_out_split_is_stable_and_near_five_percent() -> None:
    pairs = [(f"thing {i}", style) for i in range(400) for style in STYLES]
    assert is_held_out("avocado", "noto")
    assert not is_held_out("avocado", "fluent")
    assert not is_held_out("red apple", "fluent")
    assert 0.04 < sum(is_held_out(*pair) for pair in pairs) / len(pairs) < 0.06


def test_selecting_the_training_side_drops_every_held_out_icon(icons: Icons) -> None:
    assert icons.select(held_out=False).names == icons.names[:7]
    assert icons.select(groups=("animals-nature",), held_out=True).names == ["owl"]


def test_tokenizer_spells_unseen_words_and_keeps_the_length(icons: Icons, tokenizer: CLIPTokenizer) -> None:
    ids = tokenize(tokenizer, [plain_caption(icons, 0), "zebra " * 40])
    assert ids.shape == (2, MAX_TOKENS)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "red apple , fluent style"
    assert tokenizer.unk_token_id not in tokenizer("zebra", add_special_tokens=False).input_ids


def test_cloud_has_ten_times_the_parameters_of_the_edge() -> None:
    with torch.device("meta"):
        cloud, edge = make_cloud_unet(), make_edge_unet()
    assert cloud.num_parameters() >= 10 * edge.num_parameters()


def test_budget_must_be_given_once() -> None:
    with pytest.raises(ValueError, match="give one of"):
        LoopConfig(out_dir=Path(), stage="edge")
