"""Weights that wait elsewhere: the hooks, with the processor in the place of a GPU; tests/gpu has a real one."""

import pytest
import torch

from bench.parity import NUM_STEPS, SUBJECTS, our_latents
from diffusion import loading
from diffusion.loading import load_model
from diffusion.lora_file import Lora
from diffusion.offload import Offload
from harness.tiny_lora import write_lora
from models.tiny.build import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")

    def made(name):
        if not (root / name).exists():
            build(name, root / name)
        return root / name

    return made


class OnProcessor(Offload):
    """Computes on the processor for all that."""

    def __init__(self, how, device):
        super().__init__(how, torch.device("cuda"))
        self._device = CPU


@pytest.fixture
def offloaded(monkeypatch):
    def load(folder, how, **options):
        with monkeypatch.context() as patch:
            patch.setattr(loading, "Offload", OnProcessor)
            return load_model(folder, device="cpu", offload=how, **options)

    return load


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "cogvideox", "wan"])
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_latents_and_pictures_are_the_same(folders, offloaded, name, how):
    subject = SUBJECTS[name]
    plain, moved = load_model(folders(name), device="cpu"), offloaded(folders(name), how)
    one, other = (our_latents(model, model, subject, handoff_step=NUM_STEPS) for model in (plain, moved))
    assert torch.equal(one, other)
    assert (plain.decode(one) == moved.decode(other)).all()
    assert moved.info == plain.info
    assert moved.info.num_parameters > 0


def test_sequential_keeps_no_weights_on_the_device_between_forward_passes(folders, offloaded):
    model = offloaded(folders("sd"), "sequential")
    model.encode_prompt("a cat", guided=True)
    for part in (model.network, model.text_encoders[0].network, model.vae.network):
        assert {each.device.type for each in part.parameters()} == {"meta"}


def test_one_part_at_a_time_is_on_the_device(folders, offloaded, monkeypatch):
    model = offloaded(folders("sd"), "model")
    left = []
    text_encoder, vae = model.text_encoders[0].network, model.vae.network
    for name, part in (("network", model.network), ("text encoder", text_encoder), ("vae", vae)):
        monkeypatch.setattr(part, "to", lambda where, name=name, part=part: left.append((name, str(where))) or part)
    model.encode_prompt("a cat", guided=False)
    assert set(left) == {("network", "cpu"), ("vae", "cpu")}
    left.clear()
    model.decode(torch.zeros(model.latents_shape(64, 64, 1)))
    assert set(left) == {("network", "cpu"), ("text encoder", "cpu")}


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_a_lora_is_fused_before_anything_moves(folders, offloaded, tmp_path, how):
    lora = Lora(path=write_lora(folders("sd"), tmp_path / "lora.safetensors", with_text_encoder=True))
    plain, moved = load_model(folders("sd"), device="cpu", loras=[lora]), offloaded(folders("sd"), how, loras=[lora])
    one, other = (our_latents(each, each, SUBJECTS["sd"], handoff_step=NUM_STEPS) for each in (plain, moved))
    assert torch.equal(one, other)


def test_on_a_processor_it_is_refused_in_one_line(folders):
    for how in ("model", "sequential"):
        with pytest.raises(ValueError, match="this model runs on the processor: leave it out") as refusal:
            load_model(folders("sd"), device="cpu", offload=how)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="offload must be one of none, model, sequential, not 'disk'"):
        load_model(folders("sd"), device="cpu", offload="disk")
