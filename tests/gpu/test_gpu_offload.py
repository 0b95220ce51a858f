"""Weights that wait in the machine's memory: where they are, when, and what that saves."""

from __future__ import annotations

import pytest
import torch

from diffusion.loading import load_model
from diffusion.noise import draw_noise
from edge_client.peak_memory import peak_memory
from harness.questions import distance, questions
from models import bundled_pair

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

BUNDLED = str(bundled_pair().cloud)
CUDA = torch.device("cuda")


def device_of(part: torch.nn.Module) -> str:
    return next(part.parameters()).device.type


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_answers_and_pictures_are_the_same(how: str) -> None:
    plain, moved = (load_model(BUNDLED, device="cuda", dtype="float32", offload=each) for each in ("none", how))
    for one, other in zip(*(model.evaluate(questions(model, [2.0, 5.0])) for model in (plain, moved)), strict=True):
        assert distance(other, one) < 1e-2
    latents = draw_noise(plain.latents_shape(0, 0, 1), 3).to(CUDA)
    assert abs(plain.decode(latents).astype(int) - moved.decode(latents).astype(int)).max() <= 3


def test_one_part_at_a_time_is_on_the_gpu() -> None:
    model = load_model(str(bundled_pair().edge), device="cuda", offload="model")
    assert device_of(model.network) == "cpu"
    (question,) = questions(model, [5.0])
    parts = (model.text_encoders[0].network, model.network, model.vae.network)
    assert [device_of(part) for part in parts] == ["cuda", "cpu", "cpu"]
    model.evaluate([question])
    assert [device_of(part) for part in parts] == ["cpu", "cuda", "cpu"]
    model.decode(question.latents)
    assert [device_of(part) for part in parts] == ["cpu", "cpu", "cuda"]


def test_the_peak_is_lower_the_less_stays() -> None:
    peaks = []
    for how in ("none", "model", "sequential"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(CUDA)
        model = load_model(BUNDLED, device="cuda", offload=how)
        model.evaluate(questions(model, [5.0]))
        model.decode(draw_noise(model.latents_shape(0, 0, 1), 3).to(CUDA))
        peaks.append(peak_memory(CUDA)["peak_device_bytes"])
        del model
    assert peaks[0] > peaks[1] > peaks[2]
