"""What a GPU gets otherwise than a processor, as far as a processor can show it."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.devices import memory_format_for, on_device, wait_for
from diffusion.loading import load_model
from diffusion.noise import draw_noise

CPU = torch.device("cpu")


def test_networks_are_channels_last_on_cuda_alone():
    assert memory_format_for(torch.device("cuda")) is torch.channels_last
    assert memory_format_for(CPU) is torch.contiguous_format


def test_values_arrive_as_they_were():
    values = on_device([981.0, 0.5], CPU)
    assert values.dtype == torch.float32
    assert values.tolist() == [981.0, 0.5]
    wait_for(CPU)


def ask(model, latents):
    prompt_embeds = model.encode_prompt("a cat", guided=False).prompt_embeds.expand(len(latents), -1, -1)
    timesteps = torch.linspace(1, 900, len(latents))
    with torch.inference_mode():
        return model.network(latents.to(model.dtype), timesteps, encoder_hidden_states=prompt_embeds).sample.float()


def test_a_channels_last_network_answers_the_same(cloud_folder):
    plain, last = load_model(cloud_folder, device="cpu"), load_model(cloud_folder, device="cpu")
    last.network.to(memory_format=torch.channels_last)
    latents = draw_noise((3, 4, 16, 16), 1)
    answer = ask(last, latents.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(answer, ask(plain, latents), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_attention_is_torchs_own_and_lets_it_choose_the_fast_kernel(cloud_folder, dtype):
    model = load_model(cloud_folder, device="cpu", dtype=dtype)
    assert {type(each) for each in model.network.attn_processors.values()} == {AttnProcessor2_0}
    latents = draw_noise((2, 4, 16, 16), 1)
    # No other kernel is allowed here: nothing that the network passes (a mask, say) rules this one out.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        answer = ask(model, latents)
    with sdpa_kernel(SDPBackend.MATH):
        plain = ask(model, latents)
    tolerance = 1e-4 if dtype == "float32" else 0.1
    assert torch.allclose(answer, plain, atol=tolerance)
