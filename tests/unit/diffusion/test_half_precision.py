"""Every family in half precision, on a processor: finite, and as far from float32 as the stock pipeline is."""

import numpy as np
import pytest
import torch

from bench.parity import NUM_STEPS, SUBJECTS, our_latents, stock_latents, stock_pipeline, unpacked
from diffusion.loading import load_model
from models.tiny.build import build

# Relative L2 to the stock pipeline in the same precision, after six steps; sums of another order round otherwise.
BOUNDS = {"float16": 5e-3, "bfloat16": 3e-2}
# How far from float32: the eight bits of bfloat16 show where a network is fed its guidance times 1000.
BOUNDS_TO_FULL = {"float16": 5e-3, "bfloat16": 0.15}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")

    def made(name):
        if not (root / name).exists():
            build(name, root / name)
        return root / name

    return made


def error(ours, theirs):
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "cogvideox", "wan"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_half_precision_is_finite_and_the_stock_pipelines(folders, name, dtype):
    subject = SUBJECTS[name]
    model, full = (load_model(folders(name), device="cpu", dtype=each) for each in (dtype, "float32"))
    assert model.info.dtype == dtype
    latents = our_latents(model, model, subject, handoff_step=NUM_STEPS)
    assert latents.dtype == getattr(torch, dtype)
    assert torch.isfinite(latents).all()
    stock = stock_pipeline(folders(name), torch_dtype=getattr(torch, dtype))
    theirs = unpacked(stock, stock_latents(stock, subject), tuple(latents.shape))
    assert error(latents, theirs) < BOUNDS[dtype]
    exact = our_latents(full, full, subject, handoff_step=NUM_STEPS)
    assert error(latents, exact) < BOUNDS_TO_FULL[dtype]
    pixels = model.decode(latents)
    assert np.abs(pixels.astype(int) - full.decode(exact).astype(int)).mean() < 4


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_pair_of_two_precisions_hands_off(folders, dtype):
    large = load_model(folders("sd"), device="cpu", dtype=dtype)
    small = load_model(folders("sd"), device="cpu")
    mixed = our_latents(large, small, SUBJECTS["sd"], handoff_step=3)
    assert error(mixed, our_latents(small, small, SUBJECTS["sd"], handoff_step=3)) < BOUNDS[dtype]
