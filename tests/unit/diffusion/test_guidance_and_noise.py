import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.utils.torch_utils import randn_tensor

from diffusion.guidance import guide
from diffusion.noise import draw_noise


def two_predictions() -> tuple[torch.Tensor, torch.Tensor]:
    negative, positive = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return negative, positive


def test_guidance_scale_1_is_the_positive_prediction():
    negative, positive = two_predictions()
    assert torch.allclose(guide(negative, positive, 1.0), positive, atol=1e-6)


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescaled_guidance_equals_diffusers(rescale):
    negative, positive = two_predictions()
    theirs = rescale_noise_cfg(negative + 7.5 * (positive - negative), positive, guidance_rescale=rescale)
    assert torch.allclose(guide(negative, positive, 7.5, rescale), theirs, atol=1e-5)


def test_fully_rescaled_guidance_has_the_positive_predictions_deviation_picture_by_picture():
    negative, positive = two_predictions()
    positive[1] *= 3
    rescaled = guide(negative, positive, 7.5, 1.0)
    assert torch.allclose(rescaled.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))


def test_noise_of_picture_j_is_the_noise_of_seed_plus_j():
    batch = draw_noise((3, 4, 8, 8), 7)
    for index in range(3):
        assert torch.equal(batch[index : index + 1], draw_noise((1, 4, 8, 8), 7 + index))


def test_noise_equals_what_diffusers_draws_from_one_generator_a_picture():
    generators = [torch.Generator().manual_seed(7 + index) for index in range(2)]
    assert torch.equal(draw_noise((2, 4, 8, 8), 7), randn_tensor((2, 4, 8, 8), generator=generators))


def test_noise_draws_from_no_global_state():
    torch.manual_seed(1)
    first = draw_noise((1, 4, 8, 8), 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first, draw_noise((1, 4, 8, 8), 7))
    assert torch.equal(before, torch.get_rng_state())


def test_the_largest_seed_wraps():
    assert torch.equal(draw_noise((2, 1, 2, 2), 2**64 - 1)[1:], draw_noise((1, 1, 2, 2), 0))
