"""A trajectory that starts from a picture begins where diffusers' schedulers put the noise on."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion.loading import load_model
from diffusion.noise import draw_noise
from diffusion.picture_start import noisy_picture
from diffusion.schedulers import Stepper, parse_scheduler_config, scheduler_for
from diffusion.vae_choice import VaeChoice
from models.tiny.build import build

NUM_STEPS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build("sd", folder)
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8))


def own_scheduler(model, name):
    config = parse_scheduler_config(model.info.scheduler_config)
    return scheduler_for(name, config, own_class=model.info.scheduler_class)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc", "euler"])
@pytest.mark.parametrize("start_step", [0, 8, 19])
def test_noise_is_added_as_the_scheduler_does(model, picture, name, start_step):
    class_name, config = own_scheduler(model, name)
    noise = draw_noise((1, 4, 8, 8), 5)
    generator = [torch.Generator().manual_seed(3)]
    clean = model.encode_picture(picture, 64, 64, generator)
    scheduler = getattr(diffusers, class_name).from_config(config)
    scheduler.set_timesteps(NUM_STEPS)
    theirs = scheduler.add_noise(clean, noise, scheduler.timesteps[start_step : start_step + 1])
    schedule = Stepper(class_name, config, NUM_STEPS).schedule
    ours = noisy_picture(model, picture, schedule, start_step, size=(64, 64), num_images=1, seed=3, noise=noise)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_each_copy_has_the_noise_of_its_own_seed(model, picture):
    schedule = Stepper(*own_scheduler(model, "ddim"), NUM_STEPS).schedule

    def start(seed, num_images):
        return noisy_picture(model, picture, schedule, 8, size=(64, 64), num_images=num_images, seed=seed)

    both = start(3, 2)
    assert torch.equal(both[:1], start(3, 1))
    assert torch.allclose(both[1:], start(4, 1), atol=1e-6)


def test_a_tiny_autoencoder_that_decodes_encodes_too(model, picture, tmp_path):
    torch.manual_seed(5)
    tiny = diffusers.AutoencoderTiny(latent_channels=4, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4)
    tiny.save_pretrained(tmp_path / "tiny")
    with_tiny = load_model(model.folder.path, device="cpu", vae=VaeChoice(path_or_id=str(tmp_path / "tiny")))
    generators = [torch.Generator().manual_seed(3)] * 2
    ours = with_tiny.encode_picture(picture, 64, 64, generators)
    pixels = VaeImageProcessor(vae_scale_factor=8).preprocess(picture)
    with torch.inference_mode():
        theirs = tiny.eval().encode(pixels).latents * tiny.config.scaling_factor
    assert ours.shape == (2, 4, 8, 8)
    assert torch.allclose(ours, theirs.expand_as(ours), atol=1e-5)


def test_a_vae_without_its_encoder_is_refused_in_one_line(tmp_path, picture):
    build("sd", tmp_path / "sd")
    file = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("encoder.")}
    save_file(weights, file, metadata={"format": "pt"})
    half = load_model(tmp_path / "sd", device="cpu")
    with pytest.raises(ValueError, match=r"vae lacks \d+ weights of its configuration, such as encoder"):
        half.encode_picture(picture, 64, 64, [torch.Generator()])
