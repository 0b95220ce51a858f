import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from models.autoencoder import make_autoencoder
from models.captions import caption_corpus
from models.data import Icons
from models.loop import LoopConfig, Trainer
from models.scorer import Judge, Scorer, augment, load_scorer
from models.tasks import DecoderTask, DenoiserTask, ScorerTask, as_tensor
from models.text import make_text_encoder, train_tokenizer
from models.unets import make_edge_unet

NAMES = ("red square", "green square", "blue square", "black square")


@pytest.fixture(scope="module")
def icons() -> Icons:
    colours = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
    pictures = np.full((8, 32, 32, 3), 255, dtype=np.uint8)
    for row in range(8):
        side = slice(6, 26) if row < 4 else slice(10, 22)
        pictures[row, side, side] = colours[NAMES[row % 4].split()[0]]
    return Icons(
        pictures=pictures,
        names=[*NAMES, *NAMES],
        styles=["flat"] * 4 + ["noto"] * 4,
        groups=["symbols"] * 8,
        keywords=[()] * 8,
        held_out=np.array([False] * 7 + [True]),
    )


@pytest.fixture(scope="module")
def tokenizer(icons: Icons) -> CLIPTokenizer:
    return train_tokenizer(caption_corpus(icons), vocab_size=600)


@pytest.fixture(scope="module")
def scorer(icons: Icons, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    torch.manual_seed(0)
    task = ScorerTask(Scorer(len(tokenizer), channels=(16, 16, 32)), tokenizer, icons, sheet_pictures=1, device="cpu")
    out_dir = tmp_path_factory.mktemp("scorer")
    config = LoopConfig(out_dir=out_dir, stage="scorer", num_steps=60, batch_size=4, num_warmup_steps=5)
    trainer = Trainer(task, config)
    trainer.run()
    assert list(out_dir.glob("scorer-*.png"))
    tokenizer.save_pretrained(out_dir / "scorer" / "tokenizer")
    loaded, _ = load_scorer(out_dir / "scorer")
    pictures = as_tensor(icons)
    torch.testing.assert_close(
        loaded.eval().embed_pictures(pictures), trainer.averaged["scorer"].embed_pictures(pictures)
    )
    return loaded


def test_trained_scorer_names_the_pictures_that_it_saw(scorer: Scorer, icons: Icons, tokenizer: CLIPTokenizer) -> None:
    ranks, best = Judge(scorer, tokenizer, icons).best(as_tensor(icons)[:7], list(range(7)))
    assert ranks == [0] * 7
    assert best == list(range(7))


def test_a_picture_of_something_else_is_not_given_the_wanted_name(
    scorer: Scorer, icons: Icons, tokenizer: CLIPTokenizer
) -> None:
    ranks, best = Judge(scorer, tokenizer, icons).best(as_tensor(icons)[[2]], [0])
    assert ranks[0] > 0
    assert icons.names[best[0]] == "blue square"
    assert icons.styles[best[0]] == "flat"  # only the wanted style is chosen among


def test_no_stage_trains_on_a_held_out_picture(icons: Icons, tokenizer: CLIPTokenizer) -> None:
    task = ScorerTask(Scorer(len(tokenizer), channels=(16, 16, 32)), tokenizer, icons, device="cpu")
    assert len(task.pictures) == len(task.tokens) == 7
    vae = make_autoencoder(as_tensor(icons), decoder_channels=8)
    assert len(DecoderTask(vae, icons, device="cpu").pictures) == 7
    denoiser = DenoiserTask(
        "edge_unet",
        make_edge_unet(latents_size=4),
        make_text_encoder(tokenizer, num_layers=1),
        tokenizer,
        vae,
        icons,
        train_text=False,
        device="cpu",
    )
    assert denoiser.trained.tolist() == list(range(7))


def test_pictures_that_are_not_finite_are_refused(scorer: Scorer, icons: Icons, tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Judge(scorer, tokenizer, icons).best(torch.full((1, 3, 32, 32), torch.nan), [0])


def test_augmented_pictures_stay_in_range_on_white_and_depend_on_the_generator_alone(icons: Icons) -> None:
    pictures = as_tensor(icons)
    first, again = (augment(pictures, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == pictures.shape
    assert first.min() >= -1
    assert first.max() <= 1
    assert not torch.equal(first, augment(pictures, torch.Generator().manual_seed(4)))
    white = augment(torch.ones_like(pictures), torch.Generator().manual_seed(3))
    assert white.mean() > 0.9
