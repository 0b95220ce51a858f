"""A LoRA changes a model as it changes the stock pipeline, and makes it another model."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.parity import BOUND, NUM_STEPS, SUBJECTS, difference, our_latents, stock_latents, stock_pipeline
from diffusion.loading import load_model
from diffusion.lora_file import Lora
from harness.tiny_lora import write_lora
from models.tiny.build import build

FAMILIES = ["sd", "sdxl", "sd3", "flux", "cogvideox", "wan"]
WITH_TEXT = ["sd", "sdxl", "sd3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a family's folder; its LoRA stands beside it."""
    root = tmp_path_factory.mktemp("tiny")

    def made(name):
        if not (root / name).exists():
            build(name, root / name)
            write_lora(root / name, root / f"{name}.safetensors", with_text_encoder=name in WITH_TEXT)
        return root / name, root / f"{name}.safetensors"

    return made


def stock_with(folder, path, scale):
    pipeline = stock_pipeline(folder)
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora(lora_scale=scale)
    return pipeline


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_latents_equal_the_stock_pipelines_with_the_same_lora(folders, name, scale):
    folder, path = folders(name)
    model = load_model(folder, device="cpu", loras=[Lora(path=path, scale=scale)])
    ours = our_latents(model, model, SUBJECTS[name], handoff_step=NUM_STEPS)
    stock = stock_with(folder, path, scale)
    theirs = stock_latents(stock, SUBJECTS[name])
    if name == "flux":
        factor = stock.vae_scale_factor
        theirs = stock._unpack_latents(theirs, ours.shape[-2] * factor, ours.shape[-1] * factor, factor)
    assert difference(ours, theirs) < BOUND
    plain = load_model(folder, device="cpu")
    assert difference(ours, our_latents(plain, plain, SUBJECTS[name], handoff_step=NUM_STEPS)) > 10 * BOUND


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_model_with_a_lora_is_another_one(folders, name):
    folder, path = folders(name)
    infos = [
        load_model(folder, device="cpu", loras=loras).info
        for loras in ((), (Lora(path=path),), (Lora(path=path, scale=0.5),), (Lora(path=path), Lora(path=path)))
    ]
    assert len({info.fingerprint for info in infos}) == 4
    # Only what it changes: flux's file here has nothing for a text encoder.
    assert len({info.text_encoder_fingerprint for info in infos}) == (4 if name == "sd" else 1)
    assert len({info.vae_fingerprint for info in infos}) == 1
    again = load_model(folder, device="cpu", loras=[Lora(path=path)])
    assert again.info == infos[1]


def test_files_as_kohya_writes_them_are_read_too(folders, tmp_path):
    folder, path = folders("sd")
    of_network = {name: tensor for name, tensor in load_file(path).items() if name.startswith("unet.")}
    plain, kohya = tmp_path / "plain.safetensors", tmp_path / "kohya.safetensors"
    save_file(of_network, plain)
    renamed = {}
    for name, tensor in of_network.items():
        layer, _, matrix = name.removeprefix("unet.").rpartition(".lora_")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        renamed[f"{stem}.lora_{'down' if matrix.startswith('A') else 'up'}.weight"] = tensor
        renamed[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(renamed, kohya)
    one, other = (load_model(folder, device="cpu", loras=[Lora(path=each)]) for each in (plain, kohya))
    for ours, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_two_loras_add_up(folders):
    folder, path = folders("sd")
    half = Lora(path=path, scale=0.5)
    whole, halves = (load_model(folder, device="cpu", loras=loras) for loras in ([Lora(path=path)], [half, half]))
    for one, other in zip(whole.network.parameters(), halves.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert not one.requires_grad


def test_a_lora_for_another_base_is_refused_in_one_line(folders, tmp_path):
    folder, path = folders("sd")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:200])
    for lora, problem in (
        (folders("sdxl")[1], "does not fit .*/sd: it is for another base"),  # other shapes
        (folders("sd3")[1], "does not fit .*/sd: it "),  # other layers
        (folders("wan")[1], "does not fit .*/sd: it "),
        (folder / "unet" / "diffusion_pytorch_model.safetensors", "does not fit .*/sd: it "),  # no LoRA at all
        (damaged, "damaged.safetensors is damaged"),
    ):
        with pytest.raises(ValueError, match=problem) as refusal:
            load_model(folder, device="cpu", loras=[Lora(path=lora)])
        assert "\n" not in str(refusal.value)


def test_one_with_too_many_layers_is_refused_in_one_line(folders, tmp_path):
    small = tmp_path / "small"
    build("sd", small, size="small")
    with pytest.raises(ValueError, match=r"it changes \d+ layers, of which \d+ are there; it is for another base"):
        load_model(small, device="cpu", loras=[Lora(path=folders("sd")[1])])


def test_one_that_changes_a_text_encoder_wants_one(folders, changed_copy):
    folder, path = folders("sd")
    without = changed_copy({"model_index.json": {"text_encoder": [None, None], "tokenizer": [None, None]}}, folder)
    with pytest.raises(ValueError, match=r"changes a text encoder, and .* has none"):
        load_model(without, device="cpu", loras=[Lora(path=path)])


def test_without_peft_the_user_is_told_what_to_install(folders, monkeypatch):
    folder, path = folders("sd")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"--lora needs peft: pip install 'ecdiff\[lora\]'"):
        load_model(folder, device="cpu", loras=[Lora(path=path)])
    load_model(folder, device="cpu")


def test_path_and_scale_are_told_apart(tmp_path):
    plain, with_colon = tmp_path / "a.safetensors", tmp_path / "b:c.safetensors"
    for path in (plain, with_colon):
        path.write_bytes(b"")
        assert Lora.parse(str(path)) == Lora(path=path)
        assert Lora.parse(f"{path}:0.75") == Lora(path=path, scale=0.75)
        assert Lora.parse(str(Lora(path=path, scale=-2.0))) == Lora(path=path, scale=-2.0)
    (tmp_path / "c.bin").write_bytes(b"")
    for text, problem in (
        (str(tmp_path / "missing.safetensors"), "there is no LoRA file"),
        (f"{plain}:nan", "must be a finite number, not nan"),
        (str(tmp_path / "c.bin"), "only safetensors weights are read"),
    ):
        with pytest.raises(ValueError, match=problem):
            Lora.parse(text)
