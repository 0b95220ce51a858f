import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.families import FAMILIES
from diffusion.loading import load_model, locate, resolve_device, resolve_dtype

UNET = "unet/diffusion_pytorch_model.safetensors"


def refused(path: Path | str) -> str:
    """Return the one line that `load_model` refuses `path` with."""
    with pytest.raises((ValueError, OSError)) as caught:
        load_model(path, device="cpu")
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_a_missing_folder_is_named(tmp_path):
    assert "no model folder" in refused(tmp_path / "nowhere")


def test_a_file_is_no_model(cloud_folder):
    assert "is a file" in refused(cloud_folder / "model_index.json")


def test_a_folder_without_an_index_is_no_pipeline(tmp_path):
    assert "no model_index.json" in refused(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model_index.json").write_text(content)
    assert "model_index.json is not" in refused(tmp_path)


@pytest.mark.parametrize("name", ["PixArtSigmaPipeline", "", None])
def test_an_unknown_pipeline_lists_the_known_ones(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    text = refused(tmp_path)
    assert all(family in text for family in FAMILIES)


@pytest.mark.parametrize(
    ("part", "class_name"),
    [
        ("unet", "UNet3DConditionModel"),
        ("vae", "AutoencoderDC"),
        ("text_encoder", "T5EncoderModel"),
        ("tokenizer", None),
    ],
)
def test_an_unsupported_part_names_what_is_supported(changed_copy, part, class_name):
    text = refused(changed_copy({"model_index.json": {part: ["somewhere", class_name]}}))
    assert f"{part} is a {class_name}, supported:" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet/config.json": {"in_channels": 9}}, "inpainting"),
        ({"unet/config.json": {"out_channels": 8}}, "out_channels is 8"),
        ({"unet/config.json": {"num_class_embeds": 10}}, "num_class_embeds"),
        ({"unet/config.json": {"addition_embed_type": "text_time"}}, "addition_embed_type"),
        ({"unet/config.json": {"cross_attention_dim": 768}}, "embeddings of size 768"),
        ({"unet/config.json": {"sample_size": None}}, "sample_size"),
        ({"unet/config.json": {"block_out_channels": [16, 32]}}, "unet cannot be loaded"),
        ({"unet/config.json": {"layers_per_block": 3}}, "unet cannot be loaded"),
        ({"unet/config.json": {"norm_num_groups": 0}}, "cannot be loaded"),
        ({"unet/config.json": {"down_block_types": ["NoSuchBlock", "DownBlock2D"]}}, "cannot be loaded"),
        ({"vae/config.json": {"block_out_channels": []}}, "block_out_channels"),
        ({"scheduler/scheduler_config.json": {"prediction_type": "flow"}}, "prediction_type 'flow'"),
    ],
    ids=str,
)
def test_a_unet_that_text_to_image_cannot_run_is_refused(changed_copy, changes, words):
    assert words in refused(changed_copy(changes))


@pytest.mark.parametrize(
    "name",
    [
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_found_at_loading_and_named(changed_copy, name):
    folder = changed_copy()
    (folder / name).unlink()
    part, file = name.split("/")
    text = refused(folder)
    assert part in text
    assert file in text


@pytest.mark.parametrize("name", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_damaged_weights_are_found_at_loading_and_named(changed_copy, name, damage):
    folder = changed_copy()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\xff" * 5000}[damage]
    )
    text = refused(folder)
    assert name in text
    assert "fetch the model again" in text


def test_absent_weights_are_not_made_up(changed_copy):
    folder = changed_copy()
    weights = load_file(folder / UNET)
    del weights["conv_in.weight"]
    save_file(weights, folder / UNET, metadata={"format": "pt"})
    assert "lacks 1 weights of its configuration, such as conv_in.weight" in refused(folder)


def test_absent_text_encoder_weights_are_not_made_up(changed_copy):
    folder = changed_copy()
    name = folder / "text_encoder/model.safetensors"
    weights = load_file(name)
    lost = sorted(weights)[-1]
    del weights[lost]
    save_file(weights, name, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="text_encoder lacks 1 weights"):
        load_model(folder, device="cpu").encode_prompt("a cat", guided=False)


def test_a_damaged_tokenizer_is_one_line(changed_copy):
    folder = changed_copy()
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer cannot be loaded") as caught:
        load_model(folder, device="cpu").encode_prompt("a cat", guided=False)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(changed_copy):
    folder = changed_copy()
    torch.save(load_file(folder / UNET), folder / "unet/diffusion_pytorch_model.bin")
    (folder / UNET).unlink()
    assert "unet has pickled weights only (diffusion_pytorch_model.bin)" in refused(folder)


def test_half_precision_and_sharded_weights_are_found(changed_copy, cloud):
    folder = changed_copy()
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert load_model(folder, device="cpu").info.num_parameters == cloud.info.num_parameters
    weights = load_file(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / "unet" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_model(folder, device="cpu")
    assert torch.equal(sharded.network.conv_in.weight, cloud.network.conv_in.weight)


def test_a_missing_shard_is_named(changed_copy):
    folder = changed_copy()
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"conv_in.weight": "part-1.safetensors"}})
    )
    assert "part-1.safetensors" in refused(folder)


def test_loading_says_nothing_on_the_terminal(cloud_folder, capfd):
    model = load_model(cloud_folder, device="cpu")
    model.encode_prompt("a cat", guided=False)
    model.decode(torch.zeros(1, 4, 16, 16))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_loading_a_unet_reads_neither_text_encoder_nor_vae(cloud_folder):
    model = load_model(cloud_folder, device="cpu")
    assert "network" not in vars(model.vae)
    assert "network" not in vars(model.text_encoders[0])


def test_description_is_complete(cloud, cloud_folder):
    info = cloud.info
    assert info.name == "cloud"
    assert (info.family, info.layout, info.latent_channels) == ("sd", "BCHW", 4)
    assert (info.default_height, info.default_width, info.vae_scale_factor) == (128, 128, 8)
    assert (info.vae_scaling_factor, info.vae_shift_factor) == (0.18215, 0.0)
    assert info.scheduler_class == "DDIMScheduler"
    assert json.loads(info.scheduler_config)["beta_schedule"] == "scaled_linear"
    assert (info.dtype, info.device) == ("float32", "cpu")
    assert all(len(value) == 16 for value in (info.fingerprint, info.vae_fingerprint, info.text_encoder_fingerprint))


def test_fingerprints_do_not_depend_on_where_or_by_whom_a_model_was_saved(changed_copy, cloud):
    folder = changed_copy(
        {
            "unet/config.json": {"_diffusers_version": "0.1", "_name_or_path": "/elsewhere"},
            "vae/config.json": {"_diffusers_version": "0.1"},
            "text_encoder/config.json": {"transformers_version": "4.0", "_name_or_path": "/elsewhere"},
        }
    )
    info = load_model(folder, device="cpu").info
    assert info.fingerprint == cloud.info.fingerprint
    assert info.vae_fingerprint == cloud.info.vae_fingerprint
    assert info.text_encoder_fingerprint == cloud.info.text_encoder_fingerprint


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (UNET, "fingerprint"),
        ("vae/diffusion_pytorch_model.safetensors", "vae_fingerprint"),
        ("text_encoder/model.safetensors", "text_encoder_fingerprint"),
        ("tokenizer/tokenizer.json", "text_encoder_fingerprint"),
    ],
)
def test_fingerprints_follow_the_weights_and_the_vocabulary(changed_copy, cloud, name, field):
    folder = changed_copy()
    content = bytearray((folder / name).read_bytes())
    if name.endswith(".json"):
        content += b" "
    else:
        content[-1] ^= 1
    (folder / name).write_bytes(content)
    info = load_model(folder, device="cpu").info
    changed = {key for key in ("fingerprint", "vae_fingerprint", "text_encoder_fingerprint")} - {
        key
        for key in ("fingerprint", "vae_fingerprint", "text_encoder_fingerprint")
        if getattr(info, key) == getattr(cloud.info, key)
    }
    assert changed == {field}


def test_devices_and_dtypes_resolve():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_an_absent_cuda_device_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="use --device cpu"):
        resolve_device("cuda")


def test_unknown_device_and_dtype_are_refused():
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        resolve_device("tpu")
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        resolve_dtype("int8", torch.device("cpu"))


def test_a_folder_wins_over_a_hub_id(tmp_path, monkeypatch, cloud_folder):
    shutil.copytree(cloud_folder, tmp_path / "someone" / "model")
    monkeypatch.chdir(tmp_path)
    assert locate("someone/model") == Path("someone/model")


def modules_after(*imports: str) -> set[str]:
    code = f"import sys, {', '.join(imports)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_what_the_command_line_asks_of_this_folder_imports_no_torch():
    imported = modules_after("diffusion.scheduler_config", "diffusion.compatibility", "diffusion.families")
    assert not imported & {"torch", "diffusers", "transformers"}


def test_diffusers_is_imported_when_a_model_is_loaded():
    imported = modules_after("diffusion.loading", "diffusion.model", "diffusion.predictors", "diffusion.noise")
    assert not imported & {"diffusers", "transformers"}


def test_models_that_are_loaded_at_the_same_time_are_whole(cloud_folder):
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda _: load_model(cloud_folder, device="cpu"), range(4)))
        encoded = list(threads.map(lambda model: model.encode_prompt("a cat", guided=False).prompt_embeds, models))
    assert all(torch.equal(each, encoded[0]) for each in encoded)
