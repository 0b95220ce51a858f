"""Write the trained parts as two stock diffusers folders that share what is shared."""

import json
import shutil
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from models import DEFAULT_GUIDANCE_SCALE
from models.scorer import Scorer
from models.sheets import make_pipeline
from models.text import MAX_TOKENS

MODELS = ("cloud", "edge")
SHARED_PARTS = ("scheduler", "text_encoder", "tokenizer", "vae")


def export_pair(out_dir: Path, pair_dir: Path) -> None:
    """Replace `cloud`, `edge` and `scorer` in `pair_dir` by the averaged weights in `out_dir`, in half precision.

    The edge folder holds its UNet and links to the cloud folder's other parts, which are the same.
    """
    folders = [pair_dir / name for name in (*MODELS, "scorer")]
    for folder in folders:
        if folder.is_dir():
            shutil.rmtree(folder)
    for name in MODELS:
        pipeline = make_pipeline(
            AutoencoderTiny.from_pretrained(out_dir / "vae"),
            CLIPTextModel.from_pretrained(out_dir / "text_encoder"),
            CLIPTokenizer.from_pretrained(out_dir / "tokenizer"),
            UNet2DConditionModel.from_pretrained(out_dir / f"{name}_unet"),
        )
        folder = pair_dir / name
        pipeline.to(dtype=torch.float16).save_pretrained(folder)
        pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # older transformers read these
        _recommend_guidance(folder / "model_index.json")
        for part in ("text_encoder", "unet", "vae"):
            _tidy_config(folder / part / "config.json")
    for part in SHARED_PARTS:
        shutil.rmtree(pair_dir / "edge" / part)
        (pair_dir / "edge" / part).symlink_to(Path("..") / "cloud" / part, target_is_directory=True)
    Scorer.from_pretrained(out_dir / "scorer").half().save_pretrained(pair_dir / "scorer")
    (pair_dir / "scorer" / "tokenizer").symlink_to(Path("..") / "cloud" / "tokenizer", target_is_directory=True)
    _tidy_config(pair_dir / "scorer" / "config.json")
    for folder in folders:
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)  # written for the owner alone, which a container's user is not


def describe_pair(pair_dir: Path) -> str:
    """Describe both UNets: parameters, and the median milliseconds of a guided step on the CPU."""
    num_parameters = {name: _load_unet(pair_dir, name).num_parameters() for name in MODELS}
    step_ms = step_milliseconds(pair_dir, num_threads=1)
    lines = [f"{name}: {num_parameters[name]:,} parameters, {step_ms[name]:.1f} ms a step" for name in MODELS]
    lines.append(
        f"cloud / edge: {num_parameters['cloud'] / num_parameters['edge']:.1f} times the parameters, "
        f"{step_ms['cloud'] / step_ms['edge']:.1f} times the time (guided step, one thread)"
    )
    num_bytes = sum(path.stat().st_size for path in pair_dir.rglob("*") if path.is_file() and not path.is_symlink())
    lines.append(f"{num_bytes / 1e6:.1f} MB in {pair_dir}")
    return "\n".join(lines)


def step_milliseconds(
    pair_dir: Path, *, num_threads: int, batch_size: int = 1, num_rounds: int = 60
) -> dict[str, float]:
    """Return the median milliseconds of a guided step of both models on the CPU, `2 * batch_size` rows."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    unets = {name: _load_unet(pair_dir, name) for name in MODELS}
    seconds: dict[str, list[float]] = {name: [] for name in unets}
    for _ in range(num_rounds):  # in turns, so that a busy moment of the machine hits both
        for name, unet in unets.items():
            seconds[name].append(_step_seconds(unet, num_rows=2 * batch_size))
    torch.set_num_threads(threads_before)
    return {name: 1000 * median(times[num_rounds // 10 :]) for name, times in seconds.items()}


def _load_unet(pair_dir: Path, name: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(pair_dir / name / "unet").float().eval()


@torch.inference_mode()
def _step_seconds(unet: UNet2DConditionModel, *, num_rows: int) -> float:
    size = unet.config.sample_size
    latents = torch.randn(num_rows, unet.config.in_channels, size, size)
    embeds = torch.randn(num_rows, MAX_TOKENS, unet.config.cross_attention_dim)
    started = time.perf_counter()
    unet(latents, torch.tensor(500), embeds)
    return time.perf_counter() - started


def _recommend_guidance(path: Path) -> None:
    """Write down the guidance that generations get where nobody says any; see `PipelineFolder.guidance_scale`."""
    index = json.loads(path.read_text()) | {"_guidance_scale": DEFAULT_GUIDANCE_SCALE}
    path.write_text(json.dumps(dict(sorted(index.items())), indent=2) + "\n")


def _tidy_config(config_path: Path) -> None:
    """Drop the training folder and a key that diffusers' own loader warns about; ask for float32 by default.

    transformers would load the text encoder in the precision it is stored in, unlike diffusers the rest.
    """
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)
    if config.get("_class_name") == "AutoencoderTiny":
        config.pop("block_out_channels", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
