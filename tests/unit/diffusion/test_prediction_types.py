import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.prediction_types import convert_prediction

TYPES = ("epsilon", "v_prediction", "sample")


def truth(alpha: float, seed: int = 0) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    sigma = (1 - alpha**2) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=generator)
    x = alpha * x0 + sigma * noise
    return x, sigma, {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TYPES, TYPES)))
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.95])
def test_true_prediction_of_one_type_becomes_the_true_one_of_another(source, target, alpha):
    x, sigma, predictions = truth(alpha)
    converted = convert_prediction(predictions[source], x, source=source, target=target, alpha=alpha, sigma=sigma)
    assert torch.allclose(converted, predictions[target], atol=2e-5)


@given(alpha=st.floats(0.05, 0.99), seed=st.integers(0, 1000), types=st.permutations(TYPES))
def test_conversion_round_trips_for_any_prediction(alpha, seed, types):
    source, target, _ = types
    x, sigma, _ = truth(alpha, seed)
    prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    there = convert_prediction(prediction, x, source=source, target=target, alpha=alpha, sigma=sigma)
    back = convert_prediction(there, x, source=target, target=source, alpha=alpha, sigma=sigma)
    # A round trip divides and multiplies by alpha and sigma once each.
    assert torch.allclose(back, prediction, atol=1e-5 / (alpha * sigma))


@pytest.mark.parametrize("target", ["epsilon", "sample"])
def test_v_prediction_converts_at_zero_terminal_snr(target):
    x, sigma, predictions = truth(0.0)
    converted = convert_prediction(
        predictions["v_prediction"], x, source="v_prediction", target=target, alpha=0.0, sigma=sigma
    )
    assert torch.allclose(converted, predictions[target], atol=1e-6)


def test_epsilon_says_nothing_about_x0_at_zero_terminal_snr():
    x, sigma, predictions = truth(0.0)
    with pytest.raises(ValueError, match="zero signal"):
        convert_prediction(predictions["epsilon"], x, source="epsilon", target="v_prediction", alpha=0.0, sigma=sigma)


def test_sample_says_nothing_about_noise_at_zero_noise():
    x, sigma, predictions = truth(1.0)
    with pytest.raises(ValueError, match="zero noise"):
        convert_prediction(predictions["sample"], x, source="sample", target="epsilon", alpha=1.0, sigma=sigma)


@pytest.mark.parametrize(("source", "target"), [("flow", "epsilon"), ("epsilon", "flow")])
def test_unknown_type_is_refused(source, target):
    x, sigma, predictions = truth(0.5)
    with pytest.raises(ValueError, match="unknown prediction type 'flow'"):
        convert_prediction(predictions["epsilon"], x, source=source, target=target, alpha=0.5, sigma=sigma)
