import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from models import DEFAULT_GUIDANCE_SCALE, PROMPT_FORM, bundled_pair

PROMPT = PROMPT_FORM.format(name="red apple", style="fluent")


def draw(pipeline: StableDiffusionPipeline, *, seed: int = 0) -> np.ndarray:
    from models.sheets import generate

    [image] = generate(pipeline, [PROMPT], guidance_scale=DEFAULT_GUIDANCE_SCALE, num_inference_steps=4, seed=seed)
    return np.asarray(image)


@pytest.fixture(scope="module", params=["cloud", "edge"])
def pipeline(request: pytest.FixtureRequest) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(getattr(bundled_pair(), request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_stock_pipeline_makes_the_same_picture_from_the_same_seed(pipeline: StableDiffusionPipeline) -> None:
    picture = draw(pipeline)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1
    assert np.array_equal(picture, draw(pipeline))
    assert not np.array_equal(picture, draw(pipeline, seed=1))


def test_both_folders_share_everything_but_the_unet() -> None:
    pair = bundled_pair()
    for part in ("scheduler", "text_encoder", "tokenizer", "vae"):
        assert (pair.edge / part).resolve() == (pair.cloud / part).resolve()
    assert not (pair.edge / "unet").is_symlink()


def test_absent_pair_is_one_plain_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("models.PAIR_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no bundled model in .*README"):
        bundled_pair()
