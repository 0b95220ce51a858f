import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.prediction_types import convert_prediction

TYPES = ("epsilon", "v_prediction", "flow_prediction", "sample")


def truth(
    alpha: float, seed: int = 0, sigma: float | None = None
) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """Return latents, noise level and every true prediction; without `sigma` variance is preserved."""
    sigma = (1 - alpha**2) ** 0.5 if sigma is None else sigma
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=generator)
    x = alpha * x0 + sigma * noise
    v = (alpha * noise - sigma * x0) / (alpha**2 + sigma**2) ** 0.5
    return x, sigma, {"epsilon": noise, "sample": x0, "v_prediction": v, "flow_prediction": noise - x0}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TYPES, TYPES)))
# Levels that preserve variance, those of a flow, and Euler's.
@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.1, None), (0.5, None), (0.95, None), (0.1, 0.9), (0.7, 0.3), (1.0, 0.2), (1.0, 14.6)]
)
def test_true_prediction_of_one_type_becomes_the_true_one_of_another(source, target, alpha, sigma):
    x, sigma, predictions = truth(alpha, sigma=sigma)
    converted = convert_prediction(predictions[source], x, source=source, target=target, alpha=alpha, sigma=sigma)
    assert torch.allclose(converted, predictions[target], atol=2e-5)


@given(alpha=st.floats(0.05, 0.99), is_flow=st.booleans(), seed=st.integers(0, 1000), types=st.permutations(TYPES))
def test_conversion_round_trips_for_any_prediction(alpha, is_flow, seed, types):
    source, target, *_ = types
    x, sigma, _ = truth(alpha, seed, sigma=1 - alpha if is_flow else None)
    prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    there = convert_prediction(prediction, x, source=source, target=target, alpha=alpha, sigma=sigma)
    back = convert_prediction(there, x, source=target, target=source, alpha=alpha, sigma=sigma)
    # A round trip divides and multiplies by alpha and sigma once each.
    assert torch.allclose(back, prediction, atol=1e-5 / (alpha * sigma))


@pytest.mark.parametrize("source", ["v_prediction", "flow_prediction"])
@pytest.mark.parametrize("target", TYPES)
def test_v_and_flow_convert_at_zero_terminal_snr(source, target):
    x, sigma, predictions = truth(0.0)
    converted = convert_prediction(predictions[source], x, source=source, target=target, alpha=0.0, sigma=sigma)
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
